"""Records as JSON that any reader takes."""

from __future__ import annotations

import base64
import json
import re

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deit_batch.io import Failure, Prediction, Record, counted, json_line, json_value

_anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.dates(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


def no_constant(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


@given(
    st.none() | st.text(st.characters()),
    st.lists(st.tuples(st.text(st.characters()), st.floats(0, 1))),
    st.none() | st.text(st.characters()),
    st.dictionaries(st.text(st.characters(), min_size=1), _anything),
    st.none() | st.just("0f" * 32),
)
def test_any_record_is_one_line_of_strict_json(
    image: str | None,
    predictions: list[tuple[str, float]],
    error: str | None,
    keep: dict[str, object],
    digest: str | None,
) -> None:
    failure = None if error is None else Failure("X", error)
    record = Record(3, image, [{"label": label, "score": score} for label, score in predictions], failure, keep, digest)
    line = record.line()
    assert line == json_line(record.as_dict())
    assert line.count(b"\n") == 1
    values = json.loads(line.decode("utf-8"), parse_constant=no_constant)
    assert [p["score"] for p in values["predictions"]] == [score for _, score in predictions]


@given(st.binary())
def test_kept_bytes_are_base64_wherever_they_stand(data: bytes) -> None:
    """As of an image column of Parquet."""
    text = base64.b64encode(data).decode()
    assert json_value([data, {"bytes": bytearray(data), "path": None}]) == [text, {"bytes": text, "path": None}]


@pytest.mark.parametrize(
    ("number", "words"), [(0, "0 images"), (1, "1 image"), (2, "2 images"), (1_000, "1,000 images")]
)
def test_one_is_no_plural(number: int, words: str) -> None:
    assert counted(number, "image") == words
    assert counted(number, "class", "classes") == words.replace("image", "class").replace("classs", "classes")


def test_kept_values_of_other_libraries_are_those_of_json() -> None:
    numbers = list(range(2000))
    many = [np.array(numbers), pd.Series(numbers), pl.Series(numbers)]
    assert json_value({"lists": many, "deep": [{"a": many}]}) == {
        "lists": [numbers] * 3,
        "deep": [{"a": [numbers] * 3}],
    }
    single = [np.int64(3), np.bool_(True), np.float32(1.5), np.float64("nan"), pd.NA, pd.NaT, np.str_("x"), 2**70]
    assert json_value(single) == [3, True, 1.5, None, None, None, "x", 2**70]
    odd = [np.datetime64("2026-01-31T12:00:00.5", "ns"), np.longdouble(1), 1j, np.ndarray, {np.int64(1): 2}]
    found = [json_value(value) for value in odd]
    assert found[0] == "2026-01-31T12:00:00.500000000"
    assert json_value(np.array(odd[:1])) == found[:1]
    assert all(isinstance(value, str) for value in found[1:])


def test_a_record_shows_itself_in_one_line() -> None:
    predictions: list[Prediction] = [{"label": f"l{number}", "score": 0.1} for number in range(7)]
    failure = Failure("DecodeError", "can't be\ndecoded")
    vector = np.zeros(4, np.float32)
    assert [
        repr(record)
        for record in (
            Record(0, "a\n.jpg", predictions[:2], keep={"id": 7}),
            Record(1, None, predictions),
            Record(2, "b.jpg", []),
            Record(3, "c.jpg", [], failure),
            Record(4, "d.jpg", [], features={"cls": vector, "mean": vector}),
        )
    ] == [
        r"<Record 0 'a\n.jpg': l0 0.100, l1 0.100, keep={'id': 7}>",
        "<Record 1: l0 0.100, l1 0.100, l2 0.100, l3 0.100, l4 0.100, 2 more>",
        "<Record 2 'b.jpg': no label>",
        r"<Record 3 'c.jpg': DecodeError: can't be\ndecoded>",
        "<Record 4 'd.jpg': cls [4], mean [4]>",
    ]


@given(st.text(st.characters()), st.text(st.characters()))
def test_a_record_in_a_notebook_is_markup_of_ours_alone(image: str, label: str) -> None:
    records = [Record(0, image, [{"label": label, "score": 0.5}]), Record(0, image, [], Failure("X", label))]
    for record in records:
        shown = record._repr_html_()
        assert set(re.findall("<[^>]*>", shown)) <= {f"<{end}{name}>" for name in TAGS for end in ("", "/")}
        assert "\n" not in shown
        assert shown.encode()


TAGS = ("table", "caption", "tr", "td")
