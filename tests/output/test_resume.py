"""What an earlier run has left is told from what only looks like it, as quickly as it may be."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from helpers import deit_batch
from hypothesis import given
from hypothesis import strategies as st

from deit_batch.errors import UsageError
from deit_batch.io import Failure, LocalFile, Prediction, Record, Reference
from deit_batch.output.resume import errors_of_finished, parse_record


def prediction(label: str, score: float) -> Prediction:
    return {"label": label, "score": score}


_predictions = st.lists(st.builds(prediction, st.text(st.characters()), st.floats(0, 1)), max_size=3)


def reference(number: int, name: str | None) -> Reference:
    return Reference(number, name, LocalFile(name or ""))


@given(st.text(st.characters(), min_size=1), _predictions)
def test_every_record_of_a_run_is_taken_for_finished(name: str, predictions: list[Prediction]) -> None:
    of = reference(3, name)
    failure = None if predictions else Failure("DecodeError", name)
    line = Record.of(of, failure or predictions).line()
    assert errors_of_finished("out", [of], [line]) == [failure and "DecodeError"]


@given(_predictions.filter(bool), st.data())
def test_a_line_that_is_damaged_is_not_taken_for_a_record(predictions: list[Prediction], data: st.DataObject) -> None:
    """Wherever a byte is lost or another one stands: what JSON's own parser refuses is refused, too."""
    of = reference(0, "a.jpg")
    line = Record.of(of, predictions).line()
    place = data.draw(st.integers(line.index(b', "predictions"'), len(line) - 1))
    damage = data.draw(st.sampled_from((b"", b"\0", b"\xff", b'"', b"\\", b"\n", b"0", b".", b"}", b"\x1f", b" ")))
    damaged = line[:place] + damage + line[place + 1 :]
    try:
        errors = errors_of_finished("out", [of], [damaged])
    except UsageError:
        return
    assert errors == ([None] if parse_record(damaged) else [])


def test_lines_after_a_damaged_one_are_not_looked_at() -> None:
    references = [reference(number, f"{number}.jpg") for number in range(3)]
    lines = [Record.of(each, [{"label": "a", "score": 0.5}]).line() for each in references]
    lines[1] = lines[1].replace(b"score", b"sco\0\0")
    assert errors_of_finished("out", references, lines) == [None]


@pytest.mark.parametrize(
    "damage", ['"error": null', '"image": 5', '"image": ["a"]', '"error": {"type": 1}', "[" * 100_000]
)
def test_what_no_run_has_written_is_no_record(damage: str) -> None:
    line = f'{{"index": 0, "image": "a.jpg", "predictions": [], {damage}}}\n'.encode()
    assert errors_of_finished("out", [reference(0, "a.jpg")], [line]) == []


def test_an_image_without_a_name_has_a_record() -> None:
    inline = reference(0, None)
    assert errors_of_finished("out", [inline], [Record.of(inline, [{"label": "a", "score": 0.5}]).line()]) == [None]


def test_a_record_of_another_input_is_refused() -> None:
    line = Record.of(reference(0, "a.jpg"), [{"label": "a", "score": 0.5}]).line()
    for other in (reference(0, "b.jpg"), reference(1, "a.jpg"), Reference(0, "a.jpg", LocalFile("a.jpg"), {"x": 1})):
        with pytest.raises(UsageError, match="the input has changed"):
            errors_of_finished("out", [other], [line])


def test_a_name_that_looks_the_same_is_the_same_input() -> None:
    line = Record.of(reference(0, "e\u0301.jpg"), [{"label": "a", "score": 0.5}]).line()
    assert json.loads(line)["image"] != "\u00e9.jpg"
    assert errors_of_finished("out", [reference(0, "\u00e9.jpg")], [line]) == [None]


@pytest.mark.parametrize("out", ["x" * 249 + ".jsonl", "x" * 249 + "/"])
def test_an_output_that_the_system_refuses_says_that_nothing_was_scored(
    out: str, photos: Path, vit: Path, tmp_path: Path
) -> None:
    command: list[str | Path] = ["score", "--input", photos, "--model", vit, "--out", out]
    (tmp_path / "here").mkdir()
    done = deit_batch(*command, cwd=tmp_path / "here")
    assert done.returncode == 2
    what = "can't be written: File name too long; this run has scored nothing: mend that, or give another --out"
    assert done.stderr.splitlines()[-1].endswith(what)
    assert os.listdir(tmp_path / "here") == []
