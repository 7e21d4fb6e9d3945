"""Comparisons of two files of predictions: every image accounted for, and what CI sees."""

from __future__ import annotations

import base64
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from helpers import read_json, scored, valid
from hypothesis import given
from hypothesis import strategies as st
from made_up_results import Json, Page, invoke, record, write

from deit_batch.report.comparison import Comparison, compare
from deit_batch.report.verdict import Judgement, Verdict


def compared(old: list[Json], new: list[Json], tmp_path: Path, **options: Any) -> Comparison:
    paths = write(tmp_path / "old.jsonl", old), write(tmp_path / "new.jsonl", new)
    return compare(*paths, **{"most_rows": 100, "most_shown": 5, **options})


OLD = [
    record(0, "a.jpg", ("can", 0.9), ("jar", 0.1)),
    record(1, "b.jpg", ("can", 0.6), ("jar", 0.4)),
    record(2, "c.jpg", ("jar", 0.8)),
    record(3, "d.jpg", error="broken"),
    record(4, "e.jpg", error="broken"),
    record(5, "gone.jpg", ("jar", 0.7)),
    record(6, "f.jpg", ("jar", 0.7)),
]
NEW = [
    record(0, "new.jpg", ("can", 0.5)),
    record(1, "a.jpg", ("can", 0.8), ("jar", 0.2)),
    record(2, "b.jpg", ("jar", 0.7), ("can", 0.3)),
    record(3, "c.jpg", ("lid", 0.9)),
    record(4, "d.jpg", ("can", 0.5)),
    record(5, "e.jpg", error="still broken"),
    record(6, "f.jpg", error="broken now"),
]


def test_every_image_is_accounted_for(tmp_path: Path) -> None:
    document = compared(OLD, NEW, tmp_path).as_dict(None)
    assert document["images"] == {
        "same_label": 1,
        "flipped": 2,
        "fails_now": 1,
        "failed_before": 1,
        "fails_in_both": 1,
        "only_in_old": 1,
        "only_in_new": 1,
    }
    assert (document["compared"], document["agreement"]) == (5, 0.2)  # what fails in one run alone does not agree
    assert document["flips"] == [
        {"before": "can", "now": "jar", "images": 1},
        {"before": "jar", "now": "lid", "images": 1},
    ]
    jar = next(row for row in document["classes"] if row["label"] == "jar")
    assert jar == {"label": "jar", "old": 3, "new": 1, "kept": 0, "lost": 1, "gained": 1}
    assert (document["old"]["failed"], document["new"]["failures"]) == (2, {"DecodeError": 2})
    changes = {each["image"]: each["change"] for each in document["largest_changes"]}
    assert list(changes) == ["c.jpg", "b.jpg", "a.jpg"]  # the largest first
    assert changes == pytest.approx({"c.jpg": -0.8, "b.jpg": -0.3, "a.jpg": -0.1})
    assert document["largest_changes"][0]["score_now_of_label_before"] is None  # it was not kept


def test_images_of_one_name_and_of_none_are_joined_by_turns_and_digests(tmp_path: Path) -> None:
    def inline(index: int, digest: str, label: str) -> Json:
        return record(index, None, (label, 0.5), image_sha256=digest)

    old = [record(n, "same.jpg", (label, 0.5)) for n, label in enumerate("abc")] + [inline(3, "x" * 64, "d")]
    new = [inline(0, "x" * 64, "e"), *(record(n, "same.jpg", (label, 0.5)) for n, label in enumerate("abz", 1))]
    new.append(record(4, "same.jpg", ("a", 0.5)))
    found = compared(old, new, tmp_path)
    assert found.flips == {("d", "e"): 1, ("c", "z"): 1}
    assert (found.states["same label"], found.states["only in new"], found.states["only in old"]) == (2, 1, 0)


def test_names_that_are_not_utf8_are_not_mixed_up(tmp_path: Path) -> None:
    """Both are the same name in the records, with a replacement character."""

    def named(index: int, name: bytes, label: str) -> Json:
        given = name.decode("utf-8", "replace")
        return record(index, given, (label, 0.5), image_bytes=base64.b64encode(name).decode())

    old = [named(0, b"\xe9.jpg", "can"), named(1, b"\xe8.jpg", "jar"), named(2, b"\xe8.jpg", "lid")]
    found = compared(old, [named(0, b"\xe8.jpg", "jar"), named(1, b"\xe7.jpg", "lid")], tmp_path)
    assert found.states == {"same label": 1, "only in new": 1, "only in old": 2}
    assert [change.record["image"] for change in found.changed] == ["\ufffd.jpg"] * 3


@pytest.mark.parametrize("command", ["report {0}", "compare {0} {1}", "compare {1} {0}", "convert {0}"])
def test_several_results_in_one_file_are_refused_and_shards_in_one_are_not(command: str, tmp_path: Path) -> None:
    one = write(tmp_path / "one.jsonl", OLD[:5])
    twice = write(tmp_path / "twice.jsonl", OLD[:5] + OLD[:5])
    write(tmp_path / "shards.jsonl", OLD[1::2] + OLD[::2])
    out = ["--out", str(tmp_path / f"out{'.csv' if 'convert' in command else '.html'}")]
    refused = invoke(*command.format(twice, one).split(), *out)
    assert refused.exit_code == 2
    assert "twice.jsonl, record 6: index 0 is there again" in refused.stderr
    taken = invoke(*command.format(tmp_path / "shards.jsonl", one).split(), *out)
    assert taken.exit_code == 0, taken.output


RECORDS = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "c", None]),
        st.sampled_from(["can", "jar", "", "fails"]),
        st.sampled_from([0.2, 0.5, 1.0]),
    ),
    min_size=1,
    max_size=12,
)


def made(rows: list[tuple[str | None, str, float]]) -> list[Json]:
    return [
        record(n, name, error="broken")
        if label == "fails"
        else record(n, name, *([(label, score)] if label else []), **({} if name else {"image_sha256": "0" * 64}))
        for n, (name, label, score) in enumerate(rows)
    ]


@given(RECORDS, RECORDS)
def test_counts_add_up(tmp_path_factory: pytest.TempPathFactory, old: list[Any], new: list[Any]) -> None:
    tmp_path = tmp_path_factory.getbasetemp()
    both = record(99, "both", ("can", 1.0))
    same = compared([*made(old), both], [*made(old), both], tmp_path)
    assert (same.agreement, same.largest, same.flips) == (1.0, [], {})
    assert {change.state for change in same.changed} <= {"fails in both"}
    found = compared([*made(old), both], [both, *made(new)], tmp_path)
    states = found.states
    assert states.total() - states["only in new"] == found.old.tally.inputs == len(old) + 1
    assert states.total() - states["only in old"] == found.new.tally.inputs == len(new) + 1
    assert sum(found.flips.values()) == states["flipped"]
    assert sum(found.kept.values()) == states["same label"]
    assert found.agreement is not None


def test_what_ci_sees(tmp_path: Path) -> None:
    old, new = write(tmp_path / "old.jsonl", OLD), write(tmp_path / "new.jsonl", NEW)
    done = invoke("compare", old, new, "--out", tmp_path / "c.html", "--out", tmp_path / "c.json")
    assert done.exit_code == 0, done.output
    assert "agreement  20.00 %: the same best label for 1 of 5 images in both" in done.stdout
    assert "flip  can → jar: 1" in done.stdout
    assert "change  -0.8000 jar 0.8000 → lid 0.9000: c.jpg" in done.stdout
    document = valid(json.loads((tmp_path / "c.json").read_bytes()), "comparison")
    assert json.loads(invoke("compare", old, new, "--format", "json").stdout) == document
    page = Page((tmp_path / "c.html").read_text())
    assert "20.00 %" in page.text
    assert {page.data["states"][number] for number in page.data["values"]["state"]} == {
        *("flipped", "fails now", "failed before", "fails in both", "only in old", "only in new", "same label")
    }
    for bound, status in (("0.16", 0), ("0.17", 4)):  # 1 of 6: an image that is only in the old file does not agree
        gated = invoke("compare", old, new, "--fail-under", bound, "--out", tmp_path / "d.json")
        assert gated.exit_code == status
        assert json.loads((tmp_path / "d.json").read_bytes())["passed"] == (status == 0)
    said = f"--fail-under: the agreement is 0.2000, and 0.1667 with 1 image that is only in {old}, under 0.17"
    assert said in gated.stderr


@pytest.mark.parametrize("command", ["compare o.jsonl", "report --out r.html", "sort --out s", "convert --out c.csv"])
def test_a_result_in_parts_is_told_how_to_become_a_file(command: str, tmp_path: Path) -> None:
    (tmp_path / "preds").mkdir()
    (tmp_path / "preds" / "manifest.json").touch()
    done = invoke(*command.replace("o.jsonl", str(write(tmp_path / "o.jsonl", OLD))).split(), tmp_path / "preds")
    assert (done.exit_code, f"merge {tmp_path}/preds --out FILE' makes one file of it" in done.stderr) == (2, True)


def test_images_in_another_folder_are_joined_by_their_files_names(tmp_path: Path) -> None:
    names = ["a/1.jpg", "b/2.jpg", "a/3.jpg", "b/3.jpg"]
    old = write(tmp_path / "old.jsonl", [record(n, f"old/{name}", ("can", 0.5)) for n, name in enumerate(names)])
    new = write(tmp_path / "new.jsonl", [record(n, f"/new/{name}", ("can", 0.5)) for n, name in enumerate(names[::-1])])
    done = invoke("compare", old, new)
    assert (done.exit_code, "images  2 same label, 2 only in old, 2 only in new" in done.stdout) == (0, True)
    assert "2 images are joined by their files' names" in done.stderr


def test_names_and_labels_forge_no_line_of_a_log(tmp_path: Path) -> None:
    name = "a\n::error::\x1b[2J\u202egpj.exe"
    old = write(tmp_path / "old.jsonl", [record(0, name, ("ca\rn", 0.9))])
    new = write(tmp_path / "new.jsonl", [record(0, name, ("jar\x9b", 0.9))])
    lines = invoke("compare", old, new).stdout.split("\n")
    assert lines[-3:] == [
        r"flip  ca\rn → jar\x9b: 1",
        r"change  -0.9000 ca\rn 0.9000 → jar\x9b 0.9000: a\n::error::\x1b[2J\u202egpj.exe",
        "",
    ]


def test_a_sample_is_not_called_all_of_them(tmp_path: Path) -> None:
    """Nor do the images of the largest changes, some of which have kept their label, count for the missing ones."""
    old = [record(n, f"{n}.jpg", ("can", 0.9)) for n in range(8)]
    new = [record(n, f"{n}.jpg", ("can" if n < 4 else "jar", 0.1)) for n in range(8)]
    paths = write(tmp_path / "old.jsonl", old), write(tmp_path / "new.jsonl", new)
    for rows, told in (("3", "A random sample of 3 of the 4 that did"), ("4", "All of them")):
        done = invoke("compare", *paths, "--rows", rows, "--thumbnails", "8", "--out", tmp_path / "c.html")
        assert done.exit_code == 0, done.output
        assert told in Page((tmp_path / "c.html").read_text()).text


def test_an_agreement_that_can_not_be_had_passes_no_gate(tmp_path: Path) -> None:
    broken = write(tmp_path / "a.jsonl", [record(0, "a.jpg", error="broken")])
    assert invoke("compare", broken, broken).exit_code == 0
    gated = invoke("compare", broken, broken, "--fail-under", "0")
    assert (gated.exit_code, "can't be had" in gated.stderr) == (4, True)
    other = write(tmp_path / "b.jsonl", [record(0, "b.jpg", ("can", 0.5))])
    apart = invoke("compare", broken, other)
    assert (apart.exit_code, "no image is both in" in apart.stderr) == (2, True)
    labelled = write(tmp_path / "l.jsonl", [{**record(0, "c.jpg", ("can", 0.5)), "label": "can"}])
    assert invoke("compare", labelled, other).stderr.count("carries labels") == 1
    for wrong in (["--out", "c.txt"], ["--fail-under", "99"], ["--format", "html"]):
        assert invoke("compare", broken, broken, *wrong).exit_code == 2, wrong
    assert invoke("compare", broken, tmp_path / "none.jsonl").exit_code == 2


def test_two_runs_tell_what_was_set_otherwise_and_show_pictures(photos: Path, vit: Path, tmp_path: Path) -> None:
    old = scored(photos, vit, tmp_path, out="old.jsonl")
    (tmp_path / "other.json").write_text(json.dumps({"size": 32, "image_mean": 0.3}))
    options = {"image_processor": str(tmp_path / "other.json"), "top_k": None, "limit": 30}
    new = scored(photos, vit, tmp_path, out="new.parquet", **options)
    done = invoke("compare", old, new, "--thumbnails", "4", "--out", tmp_path / "c.html")
    assert done.exit_code == 0, done.output
    assert "top_k  5 → null" in done.stdout
    assert "30 images, 0 failed" in done.stdout
    assert "10 only in old" in done.stdout
    page = Page((tmp_path / "c.html").read_text())
    assert len(page.pictures) == 4
    assert "resized to 32×32, bilinear; mean 0.5, deviation 0.5 resized to 32×32" in page.text  # before and now
    assert "recipe  resized to 32×32, bilinear; mean 0.5, deviation 0.5 → resized" in done.stdout
    assert page.text.index("Largest changes") < page.text.index("Flips")  # pictures first


# --- which is better ------------------------------------------------------------------------------------------------


def results(right: list[bool], tmp_path: Path, name: str, **more: Any) -> Path:
    """Predictions of images that are all cans."""
    labels = (("can", "jar") if is_right else ("jar", "can") for is_right in right)
    records = [record(n, f"can/{n}.jpg", (best, 0.9), (rest, 0.1), **more) for n, (best, rest) in enumerate(labels)]
    return write(tmp_path / name, records)


def test_which_is_better_is_told_as_an_evaluation_tells_it(tmp_path: Path) -> None:
    old = results([n % 3 != 0 for n in range(90)], tmp_path, "old.jsonl")
    new = results([n % 10 != 0 for n in range(90)], tmp_path, "new.jsonl")
    (tmp_path / "l.csv").write_text("image,label\n" + "".join(f"can/{n}.jpg,can\n" for n in range(90)))
    labels: list[str | Path] = ["--labels", tmp_path / "l.csv"]
    done = invoke("compare", old, new, *labels, "--out", tmp_path / "c.json", "--out", tmp_path / "c.html")
    assert done.exit_code == 0, done.output
    accuracy = valid(json.loads((tmp_path / "c.json").read_bytes()), "comparison")["accuracy"]
    base: list[str | Path] = []
    for path, name in ((old, "ev"), (new, "ev2")):
        options = ["--input", tmp_path / "l.csv", "--predictions", path, "--out", tmp_path / name, *base]
        assert invoke("evaluate", *options).exit_code == 0
        evaluated = read_json(tmp_path / name / "metrics.json")
        side = accuracy["new" if base else "old"]
        assert side["accuracy"] == pytest.approx(evaluated["metrics"]["accuracy"])
        assert side["interval"] == pytest.approx(evaluated["intervals"]["accuracy"])
        base = ["--baseline", tmp_path / "ev" / "metrics.json"]
    change = evaluated["baseline"]["metrics"]["accuracy"]
    assert accuracy["change"] == pytest.approx(change["change"])
    assert accuracy["p_value"] == pytest.approx(change["p_value"])
    assert accuracy["interval"] == pytest.approx(change["interval"], abs=0.03)  # of other resamples
    assert (accuracy["verdict"], change["within_noise"]) == ("better", False)
    assert (accuracy["judged"], accuracy["now_right"], accuracy["now_wrong"]) == (90, 27, 6)
    told = (
        "The new result is better: of 90 images that both files have judged, 90.00 % (82.08 to 94.65) are right now, "
    )
    told += "66.67 %"
    page = Page((tmp_path / "c.html").read_text())
    assert told in done.stdout
    assert told in page.text
    assert page.text.index(told) < page.text.index("Now wrong") < page.text.index("Now right")
    outcomes = [page.data["states"][number] for number in page.data["values"]["outcome"]]
    assert Counter(outcomes) == {"now right": 27, "now wrong": 6}
    worse = invoke("compare", new, old, *labels, "--format", "json")
    assert json.loads(worse.stdout)["accuracy"]["verdict"] == "worse"


def test_what_chance_could_have_done_is_no_verdict(tmp_path: Path) -> None:
    """By labels that the records carry along; of one that failed, and one whose label the model does not know."""
    old = results([True] * 18 + [False] * 2, tmp_path, "old.jsonl", label="can")
    records = [json.loads(line) for line in old.read_text().splitlines()]
    records[0] = record(0, "can/0.jpg", error="broken", label="can")
    records[1]["label"] = "unheard of"
    records[19]["predictions"] = records[2]["predictions"]
    new = write(tmp_path / "new.jsonl", records)
    done = invoke("compare", old, new, "--format", "json")
    accuracy = valid(json.loads(done.stdout), "comparison")["accuracy"]
    assert accuracy["verdict"] == "no difference beyond chance"
    assert (accuracy["judged"], accuracy["not_judged"], accuracy["now_right"]) == (18, 2, 1)
    text = invoke("compare", old, new).stdout
    assert "There is no difference beyond chance: of 18 images that both files have judged, 94.44 %" in text
    assert "0 now wrong. 2 more with a label are not judged, and in no figure here.\n" in text
    assert "not judged  2 images with a label" in text
    alone = invoke("compare", old, results([True] * 20, tmp_path, "bare.jsonl"), "--format", "json")
    assert f"only {old} carries labels" in alone.stderr
    assert json.loads(alone.stdout)["accuracy"] is None


def test_labels_that_judge_nothing_are_wrong_usage(tmp_path: Path) -> None:
    old, new = (results([True], tmp_path, name) for name in ("old.jsonl", "new.jsonl"))
    (tmp_path / "l.csv").write_text("image,label\nother.jpg,can\n")
    done = invoke("compare", old, new, "--labels", tmp_path / "l.csv", "--out", tmp_path / "c.html")
    assert (done.exit_code, "none of these images is judged in both files" in done.stderr) == (2, True)
    assert not (tmp_path / "c.html").exists()
    several = results([True], tmp_path, "s.jsonl", label=["can"])
    mixed = invoke("compare", results([True], tmp_path, "o.jsonl", label="can"), several)
    assert (mixed.exit_code, "one has several labels an image" in mixed.stderr) == (2, True)


@given(st.lists(st.tuples(*[st.sampled_from(["right", "wrong", "not judged", None])] * 2)))
def test_every_labelled_image_is_judged_or_counted(judgements: list[tuple[Judgement | None, Judgement | None]]) -> None:
    verdict = Verdict("l.csv")
    for before, now in judgements:
        verdict.count(before, now)
    both = [pair for pair in judgements if {*pair} <= {"right", "wrong"}]
    assert verdict.judged == len(both)
    assert verdict.judged + verdict.not_judged == sum(pair != (None, None) for pair in judgements)
    told = verdict.as_dict()
    assert (told is None) == (not both)
    if told:
        assert told["old"]["right"] == sum(before == "right" for before, _ in both)
        assert told["new"]["right"] == sum(now == "right" for _, now in both)
        assert told["interval"][0] <= told["change"] <= told["interval"][1]
