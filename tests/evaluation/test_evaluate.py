"""Evaluations: numbers against scikit-learn's own, every image accounted for, what CI sees."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, cast
from xml.etree import ElementTree

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result
from helpers import EXAMPLES, LABELS, MakeCheckpoint, deit_batch, interrupted_after, jpeg, read_json, read_jsonl
from hypothesis import given
from hypothesis import strategies as st
from made_up_results import Page
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import binomtest
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

from deit_batch.cli import main
from deit_batch.commands.evaluate import Gate
from deit_batch.errors import UsageError
from deit_batch.evaluation.evaluate import _changed
from deit_batch.evaluation.joining import Labels, given_in
from deit_batch.evaluation.judged import Judged, MultiLabel, Pair, SingleLabel, judge, summarise_predictions
from deit_batch.evaluation.metrics import compute
from deit_batch.evaluation.mistakes import Mistake
from deit_batch.evaluation.names import BELOW_ZERO, CARD_NAMES, HIGHER_IS_BETTER, LOWER_IS_BETTER, NAMES, PLOTS
from deit_batch.evaluation.noise import compare, intervals, statistics
from deit_batch.evaluation.outcomes import pack, read_baseline, unpack
from deit_batch.evaluation.plots import draw
from deit_batch.input.labels import open_labelled
from deit_batch.model.matching import Matching, class_numbers, read_label_map
from deit_batch.names import alike

CLASSES = ["can", "carton", "jar", "lid", "milk bottle", "water bottle"]


def record(index: int, scores: NDArray[np.float32], top_k: int | None = None) -> dict[str, Any]:
    order = np.argsort(-scores, kind="stable")[:top_k]
    predictions = [{"label": CLASSES[number], "score": float(scores[number])} for number in order]
    return {"index": index, "image": f"{index}.jpg", "predictions": predictions}


def made(n: int = 300, *, several: bool, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Scores [n, classes] that know something, and the truth [n, classes]. No image is a lid; the fewest are jars."""
    random = np.random.default_rng(seed)
    if several:
        truth = random.random((n, len(CLASSES))) < 0.3
    else:
        truth = np.eye(len(CLASSES), dtype=bool)[random.choice([0, 0, 0, 1, 1, 2, 4, 5], n)]
    truth[:, 3] = False
    logits = random.normal(size=truth.shape) + 2.0 * truth
    scores = 1 / (1 + np.exp(1 - logits)) if several else np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return scores.astype(np.float32), truth


def judged(scores: NDArray[np.float32], truth: NDArray[np.bool_], *, several: bool, top_k: int | None = None) -> Judged:
    pairs = [
        Pair(record(row, scores[row], top_k), [CLASSES[number] for number in np.flatnonzero(truth[row])], row)
        for row in range(len(scores))
    ]
    full = 0 if top_k else len(CLASSES)
    return judge(pairs, CLASSES, Matching(CLASSES, {}), multi_label=several, full=full, threshold=0.5)


# --- numbers --------------------------------------------------------------------------------------------------------


def test_metrics_of_single_labels_are_scikit_learns() -> None:
    scores, truth = made(several=False)
    found = compute(judged(scores, truth, several=False), 400)
    labels, predicted = truth.argmax(1), scores.argmax(1)
    there = [0, 1, 2, 4, 5]
    expected = {
        "accuracy": sk.accuracy_score(labels, predicted),
        "accuracy_of_all_inputs": (labels == predicted).sum() / 400,
        "top_5_accuracy": sk.top_k_accuracy_score(labels, scores, k=5, labels=range(6)),
        "balanced_accuracy": sk.balanced_accuracy_score(labels, predicted),
        "balanced_accuracy_adjusted": sk.balanced_accuracy_score(labels, predicted, adjusted=True),
        "weighted_accuracy": sk.accuracy_score(labels, predicted, sample_weight=np.bincount(labels)[labels]),
        "matthews_corrcoef": sk.matthews_corrcoef(labels, predicted),
        "log_loss": sk.log_loss(labels, scores / scores.sum(1, keepdims=True, dtype=np.float64), labels=range(6)),
    }
    for average in ("micro", "macro", "weighted"):
        expected[f"f1_{average}"] = sk.f1_score(labels, predicted, average=average)
        expected[f"precision_{average}"] = sk.precision_score(labels, predicted, average=average, zero_division=0)
        expected[f"recall_{average}"] = sk.recall_score(labels, predicted, average=average, zero_division=0)
        columns = slice(None) if average == "micro" else there
        one_hot, columns_of_scores = truth[:, columns], scores[:, columns]
        expected[f"roc_auc_{average}"] = sk.roc_auc_score(one_hot, columns_of_scores, average=average)
        expected[f"average_precision_{average}"] = sk.average_precision_score(
            one_hot, columns_of_scores, average=average
        )
    for name, value in expected.items():
        assert found.values[name] == pytest.approx(value, rel=1e-6), name
    assert found.values.keys() - expected.keys() == {"expected_calibration_error"}
    matrix = sk.confusion_matrix(labels, predicted, labels=range(6))
    for number, row in enumerate(found.per_class):
        assert [row["predicted_as"].get(name, 0) for name in CLASSES] == matrix[number].tolist()


def test_metrics_of_several_labels_are_scikit_learns() -> None:
    scores, truth = made(several=True)
    found = compute(judged(scores, truth, several=True), 300)
    predicted = scores >= 0.5
    there = [0, 1, 2, 4, 5]
    assert found.values["accuracy"] == sk.accuracy_score(truth, predicted)
    for average in ("micro", "macro", "weighted"):
        for name, score in (("f1", sk.f1_score), ("jaccard", sk.jaccard_score), ("recall", sk.recall_score)):
            value = score(truth, predicted, average=average, zero_division=0)
            assert found.values[f"{name}_{average}"] == pytest.approx(value)
        columns = slice(None) if average == "micro" else there
        value = sk.roc_auc_score(truth[:, columns], scores[:, columns], average=average)
        assert found.values[f"roc_auc_{average}"] == pytest.approx(value)
    assert found.values["jaccard_samples"] == pytest.approx(
        sk.jaccard_score(truth, predicted, average="samples", zero_division=1)
    )
    shares = scores.astype(np.float64)
    each = [sk.log_loss(truth[:, number], shares[:, number], labels=[False, True]) for number in range(6)]
    assert found.values["log_loss"] == pytest.approx(np.mean(each), rel=1e-6)
    balanced = [sk.balanced_accuracy_score(truth[:, number], predicted[:, number]) for number in there]
    assert found.values["balanced_accuracy"] == pytest.approx(np.mean(balanced))
    assert found.values["balanced_accuracy_adjusted"] == pytest.approx(2 * np.mean(balanced) - 1)
    assert [row["images"] for row in found.per_class] == truth.sum(0).tolist()


def test_what_has_no_value_is_unavailable_and_not_0() -> None:
    scores, truth = made(several=False)
    same = np.repeat(scores[:1], len(scores), axis=0)
    one = np.repeat(truth[:1], len(truth), axis=0)
    for predicted, labels in ((same, truth), (scores, one)):
        found = compute(judged(predicted, labels, several=False), len(truth))
        assert "matthews_corrcoef" not in found.values
        assert found.unavailable["matthews_corrcoef"].startswith("needs two classes among the labels, and two")
    every = compute(judged(scores, np.ones_like(truth), several=True), len(truth))
    assert {"balanced_accuracy", "balanced_accuracy_adjusted"} <= every.unavailable.keys()
    nothing = np.zeros_like(truth)
    assert compute(judged(np.full_like(scores, 0.1), nothing, several=True), len(truth)).values["jaccard_samples"] == 1


def test_two_classes_have_binary_metrics_too() -> None:
    random = np.random.default_rng(0)
    truth = random.random(80) < 0.3
    score = np.clip(random.random(80) * 0.7 + 0.3 * truth, 0.01, 0.99)
    names = ["no", "yes"]
    pairs = []
    for row, (is_it, value) in enumerate(zip(truth, score, strict=True)):
        two = sorted(zip((1 - value, value), names, strict=True), reverse=True)
        predictions = [{"label": name, "score": float(share)} for share, name in two]
        pairs.append(Pair({"index": row, "image": "x", "predictions": predictions}, [names[int(is_it)]], row))
    found = compute(judge(pairs, names, Matching(names, {}), multi_label=False, full=2, threshold=0.5), 80)
    assert found.values["f1_binary"] == pytest.approx(sk.f1_score(truth, score > 0.5))
    assert found.values["roc_auc_binary"] == pytest.approx(sk.roc_auc_score(truth, score))
    assert found.values["average_precision_binary"] == pytest.approx(sk.average_precision_score(truth, score))
    assert "5 predictions" in found.unavailable["top_5_accuracy"]


def test_calibration_is_that_of_the_paper() -> None:
    scores, truth = made(several=False)
    found = compute(judged(scores, truth, several=False), 300)
    confidence, right = scores.max(1), scores.argmax(1) == truth.argmax(1)
    shares, means = calibration_curve(right, confidence, n_bins=15)
    assert [bin_["accuracy"] for bin_ in found.bins] == pytest.approx(shares.tolist())
    assert [bin_["confidence"] for bin_ in found.bins] == pytest.approx(means.tolist())
    weights = np.array([bin_["samples"] for bin_ in found.bins]) / 300
    assert found.values["expected_calibration_error"] == pytest.approx((weights * abs(shares - means)).sum())


def test_the_best_five_give_what_they_can_and_say_what_they_cannot() -> None:
    scores, truth = made(several=False)
    whole = compute(judged(scores, truth, several=False), 300)
    some = compute(judged(scores, truth, several=False, top_k=5), 300)
    for name in ("accuracy", "top_5_accuracy", "f1_macro", "expected_calibration_error", "matthews_corrcoef"):
        assert some.values[name] == pytest.approx(whole.values[name]), name
    assert whole.values.keys() - some.values.keys() == set(some.unavailable)
    assert some.unavailable["log_loss"] == "needs every class's score: score with --top-k all"


def test_what_was_cut_off_above_the_threshold_is_no_miss_of_the_model() -> None:
    truth = np.ones((4, len(CLASSES)), dtype=bool)
    truth[0, 2:] = False
    perfect = np.where(truth, 0.9, 0.1).astype(np.float32)
    found = compute(judged(perfect, truth, several=True, top_k=3), 4)
    assert {"accuracy", "f1_macro", "jaccard_micro", "recall_weighted"} <= found.unavailable.keys()
    assert found.values == {}
    assert "--top-k all" in found.unavailable["accuracy"]
    again = unpack(json.loads(json.dumps(pack(judged(perfect, truth, several=True, top_k=3).outcomes))))
    assert (intervals(again), again.predicted) == ({}, None)
    enough = judged(perfect[:1], truth[:1], several=True, top_k=3)  # the third is below the threshold
    assert compute(enough, 1).values["accuracy"] == 1


def test_the_accuracy_table_counts_at_each_threshold() -> None:
    scores, truth = made(several=True)
    table = compute(judged(scores, truth, several=True), 300).accuracy_table
    place = table["thresholds"].index(0.4)
    (tn, fp), (fn, tp) = sk.confusion_matrix(truth[:, 1], scores[:, 1] >= np.float32(0.4))
    assert table["per_class"]["carton"][place] == [tp, fp, fn, tn]
    assert np.sum([table["per_class"][name] for name in CLASSES], 0).tolist() == table["all"]


def test_two_classes_of_one_name_count_as_one() -> None:
    """As ImageNet's two cranes."""
    predictions = [{"label": name, "score": score} for name, score in (("jar", 0.4), ("crane", 0.35), ("crane", 0.25))]
    pair = Pair({"index": 0, "image": "a.jpg", "predictions": predictions}, ["crane"], 0)
    classes = ["crane", "jar"]
    found = judge([pair], classes, Matching(classes, {}), multi_label=False, full=3, threshold=0.5)
    assert found.scores is not None
    assert found.scores.tolist() == [[pytest.approx(0.6), pytest.approx(0.4)]]
    assert compute(found, 1).values["accuracy"] == 1
    told = summarise_predictions([pair.record] * 2, multi_label=False)
    assert (told.classes, told.full) == (classes, 3)
    few = judge([pair], classes, Matching(classes, {}), multi_label=False, full=0, threshold=0.5)
    assert compute(few, 1).values["accuracy"] == 1


def test_a_survey_tells_whole_records_from_the_best_few() -> None:
    scores, _ = made(several=False)
    whole = summarise_predictions([record(row, scores[row]) for row in range(9)], multi_label=False)
    assert (whole.classes, whole.full) == (CLASSES, 6)
    assert summarise_predictions([record(row, scores[row], 3) for row in range(9)], multi_label=False).full == 0
    assert summarise_predictions([record(0, scores[0], 3)], multi_label=False).full == 0


def test_a_survey_tells_whether_images_may_have_several_labels() -> None:
    one, several = (made(several=several)[0] for several in (False, True))
    told = summarise_predictions([record(row, several[row]) for row in range(9)], multi_label=False)
    assert (told.multi_label, told.full) == (True, 6)
    assert not summarise_predictions([record(row, one[row], 3) for row in range(9)], multi_label=False).multi_label
    kept = [{**record(row, one[row]), "label": ["jar"]} for row in range(9)]
    assert summarise_predictions(kept, multi_label=False).multi_label


# --- chance ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("several", [False, True])
def test_what_is_resampled_is_what_is_reported(several: bool) -> None:
    found = judged(*made(several=several), several=several)
    whole = compute(found, 300).values
    once = statistics(found.outcomes, np.ones((1, 300)))
    for name, value in once.items():
        assert value[0] == pytest.approx(whole[name], rel=1e-4), name
    for name, (low, high) in intervals(found.outcomes).items():
        assert low <= whole[name] <= high, name
    assert "expected_calibration_error" not in intervals(found.outcomes)  # chance makes that of a resample larger


def test_intervals_are_as_wide_as_the_binomials() -> None:
    found = judged(*made(2000, several=False), several=False)
    low, high = intervals(found.outcomes)["accuracy"]
    share = compute(found, 2000).values["accuracy"]
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(share * (1 - share) / 2000), rel=0.1)


@pytest.mark.parametrize("several", [False, True])
def test_all_right_of_twenty_is_not_certainty(several: bool) -> None:
    _, truth = made(20, several=several)
    reach = intervals(judged(np.where(truth, 0.9, 0.02).astype(np.float32), truth, several=several).outcomes)
    assert reach["accuracy"] == pytest.approx((0.8389, 1.0), abs=1e-4)  # Wilson's: n / (n + 1.96²) to 1


@pytest.mark.parametrize("several", [False, True])
def test_a_change_is_told_from_noise(several: bool, tmp_path: Path) -> None:
    scores, truth = made(several=several)
    now = judged(scores, truth, several=several).outcomes
    path = tmp_path / "metrics.json"
    path.write_text(json.dumps({"outcomes": pack(now)}))
    same = compare(read_baseline(path), unpack(pack(now)))
    assert same["images"] == 300
    assert all(change["change"] == 0 and change["within_noise"] for change in same["metrics"].values())
    worse = scores.copy()
    worse[:60] = worse[:60, ::-1]
    changes = compare(now, judged(worse, truth, several=several).outcomes)["metrics"]
    assert not changes["accuracy"]["within_noise"]
    assert not changes["f1_macro"]["within_noise"]
    assert changes["f1_macro"]["change"] < 0
    said = _changed({"file": "m.json", "images": 300, "metrics": changes})
    assert re.search(r"beyond noise: .*f1_macro -0\.\d{4} \(worse\)", said)


def test_the_test_of_accuracy_is_mcnemars_of_the_images_that_both_have_seen() -> None:
    scores, truth = made(several=False)
    other = made(several=False, seed=5)[0] * 0.3 + scores
    other /= other.sum(1, keepdims=True)
    before = judged(scores[:250], truth[:250], several=False)
    pairs = [Pair(record(row, other[row]), [CLASSES[truth[row].argmax()]], row) for row in range(50, 300)]
    now = judge(pairs, CLASSES, Matching(CLASSES, {}), multi_label=False, full=6, threshold=0.5)
    found = compare(before.outcomes, now.outcomes)
    labels = truth[50:250].argmax(1)
    was, is_ = (part[50:250].argmax(1) == labels for part in (scores, other))
    won, lost = int((is_ & ~was).sum()), int((was & ~is_).sum())
    assert found["images"] == 200
    assert found["metrics"]["accuracy"]["p_value"] == binomtest(won, won + lost).pvalue
    assert found["metrics"]["accuracy"]["change"] == pytest.approx(is_.mean() - was.mean())


def test_a_baseline_of_another_folder_is_found_by_the_files_names() -> None:
    scores, truth = made(several=False)

    def of(folder: str, rows: range) -> SingleLabel | MultiLabel:
        pairs = [
            Pair({**record(row, scores[row]), "image": f"{folder}/{row}.jpg"}, [CLASSES[truth[row].argmax()]], row)
            for row in rows
        ]
        return judge(pairs, CLASSES, Matching(CLASSES, {}), multi_label=False, full=6, threshold=0.5).outcomes

    before, now = unpack(pack(of("/old/val", range(200)))), of("/new/val", range(100, 300))
    assert [compare(before, now)[name] for name in ("images", "missing")] == [100, 100]
    with pytest.raises(UsageError, match="no image of it is here with the same label"):
        compare(of("/old/val", range(50)), now)
    with pytest.raises(
        UsageError, match="--baseline is of images with one label each, and these have several labels: give one"
    ):
        compare(before, judged(*made(several=True), several=True).outcomes)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=20), st.booleans())
def test_outcomes_survive_the_way_through_json(rows: list[tuple[int, int]], several: bool) -> None:
    names, keys = ["a", "b", "c"], [str(row) for row in range(len(rows))]
    labels, predicted = np.array(rows, np.int64).T
    outcomes: SingleLabel | MultiLabel
    if several:
        outcomes = MultiLabel(names, keys, np.eye(3, dtype=bool)[labels], np.eye(3, dtype=bool)[predicted])
    else:
        half = np.full(len(rows), 0.5)
        outcomes = SingleLabel(names, keys, labels, predicted, (labels == predicted) * 1, half, half * np.nan, 1)
    again = json.loads(json.dumps(pack(outcomes)))
    assert pack(unpack(again)) == pack(outcomes)


NOT_A_NUMBER = (
    '{"metrics": {"accuracy": NaN}, "outcomes": {"classes": ["a"], "keys": ["x"], "labels": [0], "predicted": [0], '
    '"rank": [1], "confidence": [0.5], "loss": [null], "depth": 1}}'
)


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"outcomes": {"classes": ["a"], "keys": ["x"], "labels": []}}', NOT_A_NUMBER]
)
def test_what_is_no_evaluation_is_no_baseline(text: str, tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(UsageError, match=r"not the metrics\.json of an evaluation"):
        read_baseline(tmp_path / "m.json")


# --- names ----------------------------------------------------------------------------------------------------------


def test_a_label_means_a_class_only_where_it_can_mean_no_other() -> None:
    classes = ["ankle boot", "tench, Tinca tinca", "tub, vat", "vat, pot", "T-Shirt", "t shirt"]
    matching = Matching(classes, {"n1": "tub, vat", "n2": "nothing"})
    assert [matching(name) for name in ("ankle-boot", "Ankle_Boot", "tench", "n1", "t shirt")] == [0, 0, 1, 2, 5]
    assert [matching(name) for name in ("vat", "t-shirt", "n2", "boot")] == [None, None, None, None]
    assert matching.inexact == {"ankle-boot": "ankle boot", "Ankle_Boot": "ankle boot", "tench": "tench, Tinca tinca"}
    assert matching.unknown == {"vat": 1, "t-shirt": 1, "n2": 1, "boot": 1}


def test_the_label_map_of_imagenet() -> None:
    mapping = read_label_map("imagenet")
    names = list(mapping.values())
    assert len(mapping) == 1000
    assert list(mapping) == sorted(mapping)  # the order of the classes
    by_number = {0: "tench, Tinca tinca", 281: "tabby, tabby cat", 285: "Egyptian cat", 388: None, 999: None}
    by_number |= {388: "giant panda, panda, panda bear, coon bear, Ailuropoda melanoleuca"}
    by_number |= {999: "toilet tissue, toilet paper, bathroom tissue"}
    assert {number: names[number] for number in by_number} == by_number
    assert [number for number, name in enumerate(names) if names.count(name) > 1] == [134, 517]  # the two cranes


@given(st.dictionaries(st.text(min_size=1).map(alike), st.text(min_size=1).map(alike)))
def test_label_maps_in_json(mapping: dict[str, str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "map.json"
        path.write_text(json.dumps(mapping))
        assert read_label_map(str(path)) == mapping


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("m.csv", "label,class\na,x\na,y\n", "'a' has no one name: 'y'"),
        ("m.json", "[]", r"it holds \[\], but is to be an object"),
        ("m.json", '{"a": 1}', "'a' has no one name: 1"),
        ("m.json", "{", "not JSON: a name in double quotes is missing"),
        ("m.json", '{"a": "x", "a": "y"}', '"a" is there twice'),
        ("m.json", "[" * 100_000, "nested too deeply"),
        ("m.csv", "version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("m.txt", "", "give imagenet, or a .json, .csv or .tsv file"),
        ("m.csv", "a\nb\n", "line 1: 1 field where there should be two"),
        ("m.csv", "label;class\na;x\n", "with a comma between them: 'label;class'"),
        ("m.csv", "label,class,more\na,x,y\n", "line 1: 3 fields where there should be two, a label and a class"),
        ("m.tsv", "label\tclass\na,x\n", "line 2: 1 field .* with a tab between them"),
        ("m.csv", "a,t\udcea\n", r"not UTF-8 \(byte 3\)"),
    ],
)
def test_what_is_no_label_map(name: str, text: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UsageError, match=f"--label-map .*{name}: .*{problem}"):
        read_label_map(str(tmp_path / name))


def test_the_first_line_of_a_label_map_is_never_lost(tmp_path: Path) -> None:
    for titles in ("", "id,name\n"):
        (tmp_path / "m.csv").write_text(f"\ufeff{titles}9,ankle boot\r\n8,bag\n")
        assert {"9": "ankle boot", "8": "bag"}.items() <= read_label_map(str(tmp_path / "m.csv")).items()


@given(st.lists(st.integers(0, 12), min_size=1), st.lists(st.sampled_from(["can", "jar", "7"]), max_size=12))
def test_labels_are_class_numbers_only_where_they_can_be_nothing_else(numbers: list[int], names: list[str]) -> None:
    found = class_numbers(map(str, numbers), names)
    can_be = "7" not in names and max(numbers) < len(names)
    assert found == ({str(number): names[number] for number in numbers} if can_be else {})
    assert class_numbers([*map(str, numbers), "can"], names) == {}


def test_the_id_of_a_synset_is_its_class() -> None:
    names = list(read_label_map("imagenet").values())
    assert Matching(names, {}).find("n02012849") == 134  # of the two cranes, the bird
    assert [Matching(["jar", "tench"], {}).find(name) for name in ("n01440764", "n99999999")] == [None, None]
    found = Matching(["jar", "tench, Tinca tinca"], {})
    assert (found("n01440764"), found.inexact) == (1, {"n01440764": "tench, Tinca tinca"})


def test_labels_of_another_world_are_an_error_that_names_both() -> None:
    scores, _ = made(several=False)
    pair = Pair(record(0, scores[0]), ["n01440764"], 0)
    with pytest.raises(
        UsageError, match=r"none of the labels \(n01440764, …\), but can, carton, jar, …: .*--label-map"
    ):
        judge([pair], CLASSES, Matching(CLASSES, {}), multi_label=False, full=6, threshold=0.5)


@given(st.sampled_from(sorted(HIGHER_IS_BETTER) + sorted(CARD_NAMES)), st.floats(-1, 1))
def test_gates(name: str, least: float) -> None:
    if least < 0 and CARD_NAMES.get(name, name) not in BELOW_ZERO:
        with pytest.raises(click.BadParameter, match=r"is no number in 0\.\.1"):
            Gate().convert(f"{name}={least!r}", None, None)
        return
    assert Gate().convert(f"{name}={least!r}", None, None) == (name, least)


@given(st.text() | st.text().map("accuracy={}".format) | st.just("log_loss=0.1"))
def test_what_is_no_gate_is_wrong_usage(text: str) -> None:
    try:
        name, least = Gate().convert(text, None, None)
    except click.BadParameter:
        return
    assert name in NAMES | set(CARD_NAMES)
    assert -1 <= least <= 1


def test_of_each_metric_it_is_known_whether_lower_is_better() -> None:
    compared = set()
    for several in (False, True):
        scores, truth = made(several=several)
        perfect = np.where(truth, 1 - 1e-6, 1e-6).astype(np.float32)
        worse, best = (compute(judged(given, truth, several=several), len(truth)).values for given in (scores, perfect))
        for name in worse.keys() & best.keys():
            compared.add(name)
            better = worse[name] >= best[name] if name in LOWER_IS_BETTER else worse[name] <= best[name]
            assert better, name
    assert compared == {name for name in NAMES if not name.endswith("_binary")}  # those are of the same names


def test_equal_scores_count_in_the_order_of_the_record() -> None:
    tied = {"index": 0, "image": "a", "predictions": [{"label": "yes", "score": 0.5}, {"label": "no", "score": 0.5}]}
    names = ["no", "yes"]
    found = judge([Pair(tied, ["yes"], 0)], names, Matching(names, {}), multi_label=False, full=2, threshold=0.5)
    assert compute(found, 1).values["accuracy"] == 1
    assert cast(SingleLabel, found.outcomes).rank.tolist() == [1]


# --- the whole ------------------------------------------------------------------------------------------------------


def document(folder: Path) -> dict[str, Any]:
    return read_json(folder / "metrics.json")


def evaluated(*args: object) -> Result:
    return CliRunner().invoke(main, ["evaluate", "--workers", "0", *map(str, args)])


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The evaluation of the demo model on the examples."""
    folder = tmp_path_factory.mktemp("demo")
    done = deit_batch("evaluate", "--input", EXAMPLES, "--model", "demo", "--out", "e", cwd=folder)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert "labels: class folders, 10 classes" in done.stderr
    assert "accuracy 0.9" in done.stderr
    return folder / "e"


def test_the_demo_model_on_the_examples(demo: Path) -> None:
    found = document(demo)
    records = read_jsonl(demo / "predictions.jsonl")
    right = [r["predictions"][0]["label"].replace(" ", "-") == r["label"] for r in records]
    assert found["metrics"]["accuracy"] == sum(right) / 40
    assert found["matched"] == {"ankle-boot": "ankle boot"}  # said, not hidden
    assert (found["inputs"], found["judged"], found["multi_label"]) == (40, 40, False)
    for name in PLOTS:
        with Image.open(demo / name) as picture:
            assert min(picture.size) > 300, name
    page = (demo / "report.md").read_text()
    assert all(f"({name})" in page for name in PLOTS)
    assert f"| accuracy (top-1) | {sum(right) / 40:.4f} |" in page


def test_the_page_of_an_evaluation(demo: Path) -> None:
    found, page = document(demo), Page((demo / "report.html").read_text())
    accuracy, (low, high) = found["metrics"]["accuracy"], found["intervals"]["accuracy"]
    told = f"{100 * accuracy:.1f} % of 40 images are right (95 % interval {100 * low:.1f} to {100 * high:.1f})."
    assert told in page.text
    assert "labels taken for names that are not quite theirs: ankle-boot as ankle boot" in page.text
    assert f"{found['metrics']['log_loss']:.4f}" in page.text
    plots = [picture for picture in page.pictures if picture.startswith("data:image/png;base64,")]
    shown = [base64.b64decode(picture.partition(",")[2]) for picture in plots]
    assert shown == [(demo / name).read_bytes() for name in ("reliability.png", "precision_recall.png")]
    assert len(page.pictures) == 2 + len(found["mistakes"])
    assert page.data["links"] == {"start": "file://", "others": {}}  # before names that are whole paths
    worst = min(found["per_class"], key=lambda row: row["f1"])
    assert f"most often taken for {worst['class']} {worst['images']} {worst['precision']:.4f}" in page.text
    records = read_jsonl(demo / "predictions.jsonl")
    names = [page.data["folder"] + name for name in page.data["names"]]
    assert names == [each["image"] for each in records]
    for column, values in (
        ("label", [each["predictions"][0]["label"] for each in records]),
        ("truth", [each["label"].replace("-boot", " boot") for each in records]),
    ):
        assert [page.data["labels"][number] for number in page.data["values"][column]] == values
    states = Counter(page.data["states"][number] for number in page.data["values"]["state"])
    assert states == {"right": round(accuracy * 40), "wrong": len(found["mistakes"])}


def test_gates_and_a_baseline_as_ci_uses_them(demo: Path, tmp_path: Path) -> None:
    command = ["--input", EXAMPLES, "--predictions", demo / "predictions.jsonl", "--out", tmp_path / "e"]
    gates = ["--fail-under", "accuracy=0.5", "--fail-under", "AUC_macro=0.5", "--fail-under", "f1_macro=0.999"]
    below = evaluated(*command, *gates, "--baseline", demo)  # which is demo/metrics.json
    assert below.exit_code == 4
    found = document(tmp_path / "e")
    gap = 0.999 - found["metrics"]["f1_macro"]
    assert f"--fail-under: f1_macro is {found['metrics']['f1_macro']:.4f}, {gap:.4g} under 0.999" in below.stderr
    assert [gate["passed"] for gate in found["gates"].values()] == [True, True, False]
    assert found["baseline"]["images"] == 40
    assert f"against {demo / 'metrics.json'}, on the 40 images of both: no metric changed beyond noise" in below.stderr
    assert all(change["within_noise"] for change in found["baseline"]["metrics"].values())
    assert evaluated(*command, *gates[:4]).exit_code == 0
    missing = evaluated(*command, "--fail-under", "jaccard_macro=0.1")
    assert (missing.exit_code, "jaccard_macro can't be had" in missing.stderr) == (4, True)


def test_a_fall_against_the_baseline_is_a_gate_of_its_own(demo: Path, tmp_path: Path) -> None:
    """A floor says nothing of it: the worse predictions are still above theirs."""
    records = read_jsonl(demo / "predictions.jsonl")
    for record in records[:12]:
        record["predictions"] = [{**each, "label": "bag"} for each in record["predictions"][:1]]
    (tmp_path / "worse.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    command = ["--input", EXAMPLES, "--out", tmp_path / "e", "--junit", tmp_path / "j.xml", "--predictions"]
    baseline = ["--baseline", demo / "metrics.json", "--fail-under", "accuracy=0.5"]
    fell = evaluated(*command, tmp_path / "worse.jsonl", *baseline, "--max-drop", "accuracy=0.01")
    assert fell.exit_code == 4
    found = document(tmp_path / "e")
    before, now = (found["baseline"]["metrics"]["accuracy"][name] for name in ("before", "now"))
    assert found["drops"] == {"accuracy": {"most": 0.01, "drop": before - now, "passed": False}}
    told = f"--max-drop: accuracy was {before:.4f} in the baseline and is {now:.4f}: worse by {before - now:.4g}, more"
    assert told in fell.stderr
    assert f"accuracy {now - before:+.4f} (worse)" in fell.stderr
    verdicts = {case.attrib["name"]: case[0].tag for case in ElementTree.parse(tmp_path / "j.xml").iter("testcase")}
    assert verdicts == {"accuracy": "system-out", "drop of accuracy": "failure", "images": "system-out"}
    assert "| drop of accuracy against the baseline |" in (tmp_path / "e" / "report.md").read_text()
    assert found["baseline"]["missing"] == 0
    gates = ["--max-drop", f"accuracy={before - now:.3f}", "--max-drop", "accuracy=1", "--max-drop", "f1_score_macro=1"]
    assert evaluated(*command, tmp_path / "worse.jsonl", *baseline, *gates).exit_code == 0
    assert document(tmp_path / "e")["drops"]["accuracy"]["most"] < 1  # of two, the lower


def test_images_of_the_baseline_that_are_gone_are_no_way_past_its_gate(demo: Path, tmp_path: Path) -> None:
    lines = (demo / "predictions.jsonl").read_text().splitlines(keepends=True)
    table = "".join(f"{record['image']},{record['label']}\n" for record in map(json.loads, lines[:30]))
    (tmp_path / "t.csv").write_text("image,label\n" + table)
    command = ["--input", tmp_path / "t.csv", "--predictions", demo / "predictions.jsonl", "--out", tmp_path / "e"]
    command += ["--baseline", demo / "metrics.json", "--quiet", "--junit", tmp_path / "j.xml"]
    told = "10 images of it are not judged here with the same label; if that is meant, make a new baseline"
    done = evaluated(*command)
    assert (done.exit_code, f"against {demo / 'metrics.json'}: {told}" in done.stderr) == (0, True)
    assert told in (tmp_path / "j.xml").read_text()
    assert document(tmp_path / "e")["baseline"]["missing"] == 10
    assert "10 images of the baseline are not judged here" in (tmp_path / "e" / "report.md").read_text()
    gated = evaluated(*command, "--max-drop", "accuracy=1")
    assert (gated.exit_code, gated.stderr.count(told)) == (4, 2)
    verdicts = {case.attrib["name"]: case[0].tag for case in ElementTree.parse(tmp_path / "j.xml").iter("testcase")}
    assert verdicts == {"drop of accuracy": "failure", "images": "system-out"}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--max-drop", "accuracy=0.1"], "give its metrics.json as --baseline"),
        (["--max-drop", "acuracy=0.1"], "'acuracy' (do you mean accuracy?) is not compared with a baseline"),
        (["--fail-under", "f1_makro=0.5"], "'f1_makro' (do you mean f1_macro?) is no metric; there are"),
        (["--baseline", "."], "metrics.json"),
        (["--max-drop", "accuracy=-0.1"], "is no number from 0 up"),
        (["--max-drop", "accuracy=1%"], "is no number from 0 up"),
        (["--fail-under", "accuracy=-0.1"], "'-0.1' is no number in 0..1"),
        (["--fail-under", "matthews_correlation=-1.1"], "'-1.1' is no number in -1..1"),
    ],
)
def test_a_fall_that_nothing_can_tell_is_wrong_usage(words: list[str], told: str, tmp_path: Path) -> None:
    done = evaluated("--input", EXAMPLES, "--out", tmp_path / "e", *words)
    assert (done.exit_code, told in done.stderr, (tmp_path / "e").exists()) == (2, True, False)


def test_predictions_made_before_need_no_model_and_no_images(demo: Path, tmp_path: Path) -> None:
    rows = [(Path(r["image"]).name, r["label"]) for r in read_jsonl(demo / "predictions.jsonl")]
    table = "".join(f"{name},{label}\n" for name, label in [*rows[4:], ("elsewhere.png", "bag")])
    (tmp_path / "t.csv").write_text("filename,label\n" + table)
    command = ["--input", tmp_path / "t.csv", "--predictions", demo / "predictions.jsonl", "--out", tmp_path / "e"]
    assert evaluated(*command, "--model", "none").exit_code == 3
    found = document(tmp_path / "e")
    assert (found["inputs"], found["judged"], found["predictions_without_label"]) == (37, 36, 4)
    assert found["failures"] == {"no prediction": 1}
    assert found["classes_without_images"] == ["ankle boot"]
    assert "log_loss" in found["metrics"]
    again = evaluated(*command, "--error-threshold", "1", "--fail-under", "accuracy=0.1")
    assert again.exit_code == 0
    assert "on 36 of 37 images, 1 not judged (1 no prediction), 4 predictions without a label\n" in again.stderr
    assert "36 images are joined with their labels by the files' names" in again.stderr
    assert f"{tmp_path / 'e'}: the evaluation of {found['ended_at']} is replaced (accuracy 0.9" in again.stderr
    assert "; no gate failed; of other gates)" in again.stderr


def test_a_file_s_name_joins_only_what_no_other_image_has(tmp_path: Path) -> None:
    def joined(images: list[str], rows: str) -> tuple[list[tuple[str, int]], int]:
        records = [{"index": number, "image": image, "predictions": []} for number, image in enumerate(images)]
        (tmp_path / "l.csv").write_text("image,label\n" + rows)
        labels = Labels(given_in(open_labelled(str(tmp_path / "l.csv"))), records)
        return [(pair.record["image"], pair.place) for pair in labels.join(records)], labels.without_label

    rightful, rows = ["val/1.jpg", "val/2.jpg"], "val/1.jpg,cat\nval/2.jpg,cat\n"
    assert joined(["train/1.jpg", "train/2.jpg", *rightful], rows) == ([("val/1.jpg", 0), ("val/2.jpg", 1)], 2)
    assert joined(["a/1.jpg", "b/1.jpg", "c/2.jpg"], rows) == ([("c/2.jpg", 1)], 2)  # which 1.jpg can't be told
    assert joined(["a/1.jpg", "c/2.jpg"], rows + "val/1.jpg,dog\n") == ([("c/2.jpg", 1)], 1)


def test_what_failed_and_what_the_model_does_not_know_is_reported_and_no_zero(vit: Path, tmp_path: Path) -> None:
    imgs = tmp_path / "imgs"
    for number, name in enumerate(["can", "can", "jar", "milk_bottle", "cartoon"]):
        (imgs / name).mkdir(parents=True, exist_ok=True)
        (imgs / name / f"{number}.jpg").write_bytes(jpeg(number))
    (imgs / "jar" / "broken.jpg").write_bytes(b"no image")
    (imgs / "eel").mkdir()
    command = ["--input", imgs, "--model", vit, "--out", tmp_path / "e"]
    done = evaluated(*command)
    assert done.exit_code == 3, done.output
    assert (
        "4 of 6 images, 2 not judged (1 DecodeError; 1 of labels that the model does not know: 'cartoon' (do you mean "
        "carton?))\n" in done.output
    )
    found = document(tmp_path / "e")
    assert (found["inputs"], found["judged"], found["failures"]) == (6, 4, {"DecodeError": 1})
    assert (found["images_with_unknown_labels"], found["unknown_labels"]) == (1, {"cartoon": 1})
    assert found["classes_without_images"] == ["carton", "water bottle"]
    assert found["listed_without_images"] == ["cartoon", "eel"]
    assert found["metrics"]["accuracy_of_all_inputs"] == pytest.approx(found["metrics"]["accuracy"] * 4 / 6)
    assert "Not judged: 2" in (tmp_path / "e" / "report.md").read_text()
    page = Page((tmp_path / "e" / "report.html").read_text())
    assert "Not judged: 2, which count in accuracy_of_all_inputs alone, as wrong." in page.text
    assert "1 have a label that the model does not know: cartoon (1)" in page.text
    (tmp_path / "map.csv").write_text("label,class\ncartoon,jar\n")
    lines = (tmp_path / "e" / "predictions.jsonl").read_text().splitlines()
    mapped = [*command, "--label-map", tmp_path / "map.csv", "--error-threshold", "1", "--quiet"]
    again = evaluated(*mapped)
    assert (again.exit_code, again.stderr.count("again")) == (0, 0), again.output  # nothing is scored again for it
    assert document(tmp_path / "e")["judged"] == 5
    time.sleep(0.01)
    (imgs / "can" / "1.jpg").write_bytes(jpeg(7))
    again = evaluated(*mapped)
    assert "1 image has changed since" in again.stderr
    assert again.stderr.endswith("these are scored again\n")
    anew = (tmp_path / "e" / "predictions.jsonl").read_text().splitlines()
    assert [was == now for was, now in zip(lines, anew, strict=True)] == ["can/1.jpg" not in line for line in lines]
    assert "has changed" not in evaluated(*mapped).stderr
    (imgs / "jar" / "broken.jpg").unlink()
    again = evaluated(*command)
    assert (again.exit_code, "its input has changed since" in again.stderr) == (2, True)
    assert again.stderr.endswith("or replace it with --fresh\n")  # evaluate has no --incremental


def test_labels_of_which_the_model_knows_none_are_found_before_the_first_image(vit: Path, tmp_path: Path) -> None:
    for name in ("spoon", "eel"):
        (tmp_path / "imgs" / name).mkdir(parents=True)
        (tmp_path / "imgs" / name / "1.jpg").write_bytes(jpeg(1))
    done = evaluated("--input", tmp_path / "imgs", "--model", vit, "--out", tmp_path / "e")
    assert (done.exit_code, "none of the labels (eel, spoon, …), but can" in done.stderr) == (2, True)
    assert not list((tmp_path / "e").glob("predictions*"))
    (tmp_path / "map.csv").write_text("eel,jar\n")
    command = ["--input", tmp_path / "imgs", "--model", vit, "--out", tmp_path / "e"]
    assert evaluated(*command, "--label-map", tmp_path / "map.csv").exit_code == 3


def test_class_numbers_are_labels_where_they_can_only_be_that(vit: Path, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("image,label\n1.jpg,4\n2.jpg,0\n")
    for number in (1, 2):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(number))
    command = ["--input", tmp_path / "t.csv", "--model", vit, "--out", tmp_path / "e"]
    done = evaluated(*command)
    assert done.exit_code == 0, done.output
    assert "taken for the numbers of the model's classes, from 0: 4 is jar, 0 is can\n" in done.stderr
    images = {row["class"]: row["images"] for row in document(tmp_path / "e")["per_class"]}
    assert images == {"can": 1, "carton": 0, "jar": 1, "milk bottle": 0, "water bottle": 0}
    assert document(tmp_path / "e")["labels"].endswith(", one an image, numbers of the model's classes")
    (tmp_path / "map.csv").write_text("4,lid\n0,tin\n")  # what is mapped is no number
    assert "none of the labels (4, 0, …)" in evaluated(*command, "--label-map", tmp_path / "map.csv").stderr
    rows = [json.dumps({"image": str(tmp_path / f"{number}.jpg"), "label": number}) for number in (1, 2)]
    piped = ("evaluate", "--workers", "0", "--input", "-", "--model", vit, "--out", "piped")
    from_stdin = deit_batch(*piped, cwd=tmp_path, input="\n".join(rows))
    assert (from_stdin.returncode, "1 is carton, 2 is milk bottle" in from_stdin.stderr) == (0, True), from_stdin.stderr
    (tmp_path / "t.csv").write_text("image,label\n1.jpg,5\n")
    assert "none of the labels (5" in evaluated(*command, "--fresh").stderr
    # Of the best few predictions nobody knows the numbers: no accuracy of 0 comes of it.
    (tmp_path / "p.jsonl").write_text(
        json.dumps({"index": 0, "image": "1.jpg", "predictions": [{"label": "jar", "score": 0.5}]}) + "\n"
    )
    joined = ["--input", tmp_path / "t.csv", "--predictions", tmp_path / "p.jsonl", "--out", tmp_path / "joined"]
    done = evaluated(*joined)
    assert (done.exit_code, "none of the labels (5" in done.stderr) == (2, True)
    (tmp_path / "names.txt").write_text("a\nb\nc\nd\ne\njar\n")
    done = evaluated(*joined, "--id2label", tmp_path / "names.txt")
    assert (done.exit_code, document(tmp_path / "joined")["metrics"]["accuracy"]) == (0, 1), done.output


def test_what_may_come_back_is_worth_another_try_and_what_may_not_is_none(vit: Path, tmp_path: Path) -> None:
    def status(name: str) -> int:
        (tmp_path / "t.csv").write_text(f"image,label\n{name},can\n")
        done = evaluated("--input", tmp_path / "t.csv", "--model", vit, "--out", tmp_path / f"of {name}")
        assert "no image can be judged: 1 " in done.stderr, done.stderr
        return done.exit_code

    (tmp_path / "broken.jpg").write_bytes(b"no image")
    assert (status("gone.jpg"), status("broken.jpg")) == (1, 2)


def test_images_that_are_labelled_twice_are_counted_alike_by_every_path(vit: Path, tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(number))
    twice = ["0.jpg,can", "1.jpg,jar", "2.jpg,can", "1.jpg,can", "0.jpg,can", "1.jpg,jar"]
    rows = [*twice, "gone.jpg,can", "none.jpg,", "3.jpg,jar"]
    (tmp_path / "t.csv").write_text("\n".join(["image,label", *rows]))
    command = ["--input", tmp_path / "t.csv", "--model", vit, "--top-k", "all"]
    first = evaluated(*command, "--out", tmp_path / "e")
    joined: list[Any] = ["--predictions", tmp_path / "e" / "predictions.jsonl", "--out", tmp_path / "f"]
    second = evaluated("--input", tmp_path / "t.csv", *joined)
    assert (first.exit_code, second.exit_code) == (3, 3), first.output + second.output
    one, other = document(tmp_path / "e"), document(tmp_path / "f")
    assert one["failures"] == other["failures"] == {"labelled twice, differently": 1, "FetchError": 1, "RowError": 1}
    for name in ("inputs", "judged", "metrics"):
        assert one[name] == other[name]
    assert (one["inputs"], one["judged"]) == (6, 3)


def test_an_image_that_is_only_labelled_twice_is_said(vit: Path, tmp_path: Path) -> None:
    (tmp_path / "1.jpg").write_bytes(jpeg(1))
    (tmp_path / "t.csv").write_text("image,label\n1.jpg,can\n1.jpg,jar\n")
    done = evaluated("--input", tmp_path / "t.csv", "--model", vit, "--out", tmp_path / "e")
    assert (done.exit_code, "no image can be judged: 1 labelled twice, differently" in done.stderr) == (2, True)


def test_the_order_of_several_labels_is_no_difference(vit: Path, tmp_path: Path) -> None:
    rows = [{"image": "1.jpg", "label": ["can", "jar"]}, {"image": "1.jpg", "label": ["jar", "can"]}]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    labels = Labels(given_in(open_labelled(str(tmp_path / "t.jsonl"))), [])
    assert (labels.inputs, labels.failures) == (1, Counter())


def test_an_evaluation_goes_on_where_it_was_stopped(
    vit: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "all").mkdir()
    shutil.move(photos, tmp_path / "all" / "can")
    command = ["--input", tmp_path / "all", "--model", vit, "--batch-size", "4", "--out", tmp_path / "e"]
    with interrupted_after(3, monkeypatch):
        assert evaluated(*command).exit_code == 143
    assert not (tmp_path / "e" / "metrics.json").exists()
    assert len(read_jsonl(tmp_path / "e" / "predictions.jsonl.partial")) == 12
    done = evaluated(*command)
    assert (done.exit_code, "going on after 12 images" in done.stderr) == (0, True)
    assert document(tmp_path / "e")["judged"] == 40


def test_several_labels_an_image(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    model = make_checkpoint("DeiTForImageClassification", problem_type="multi_label_classification")
    (tmp_path / "data" / "images").mkdir(parents=True)
    rows = []
    for number in range(12):
        (tmp_path / "data" / "images" / f"{number}.jpg").write_bytes(jpeg(number))
        rows.append(f"{number}.jpg,{' '.join(name.replace(' ', '_') for name in LABELS[number % 3 : number % 5])}")
    (tmp_path / "data" / "labels.csv").write_text("\n".join(["filename,labels", *rows]))
    command = ["--input", tmp_path / "data", "--model", model, "--out", tmp_path / "e"]
    done = evaluated(*command, "--fail-under", "iou_macro=0.0")
    assert done.exit_code == 0, done.output
    found = document(tmp_path / "e")
    assert found["multi_label"]
    records = read_jsonl(tmp_path / "e" / "predictions.jsonl")
    predicted, truth = (np.zeros((12, 5), bool) for _ in range(2))
    for row, values in enumerate(records):
        predicted[row, [LABELS.index(p["label"]) for p in values["predictions"] if p["score"] >= 0.5]] = True
        truth[row, [LABELS.index(name.replace("_", " ")) for name in values["label"]]] = True
    assert found["metrics"]["f1_micro"] == pytest.approx(sk.f1_score(truth, predicted, average="micro"))
    assert set(PLOTS) - {path.name for path in (tmp_path / "e").iterdir()} <= {"mistakes.png"}


def test_pictures_of_many_classes_with_hard_names() -> None:
    random = np.random.default_rng(0)
    classes = [f"{name} {number}" for number, name in enumerate(["a$b", "$", "猫", "long " * 20, "x_y^{"] * 60)]
    keys = [str(row) for row in range(900)]
    labels = random.integers(300, size=900)
    predicted = np.where(random.random(900) < 0.7, labels, random.integers(300, size=900))
    scores = random.dirichlet(np.ones(300) * 0.1, 900).astype(np.float32)
    half = np.full(900, 0.5)
    outcomes = SingleLabel(classes, keys, labels, predicted, (labels == predicted) * 1, half, half, 300)
    found = Judged(outcomes, [*keys], [*range(900)], scores, Counter(), 0, Matching(classes, {}))
    mistake = Mistake("$x^{.jpg", 0, classes[0], classes[4], 0.9)
    pictures = dict(draw(found, compute(found, 900), [(mistake, None)]))
    assert list(pictures) == list(PLOTS)
    with Image.open(io.BytesIO(pictures[PLOTS[0]])) as picture:
        assert max(picture.size) < 3000  # the worst of the classes alone


def test_the_page_of_the_docs_names_every_metric() -> None:
    page = (EXAMPLES.parent / "docs" / "evaluation.md").read_text()
    for name in NAMES:
        stem, _, average = name.rpartition("_")
        named = f"`{stem}_…`" if average in ("micro", "macro", "weighted", "binary") else f"`{name}`"
        assert named in page, name


def test_images_that_are_predicted_twice_differently_are_not_judged(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("image,label\na.png,can\nb.png,jar\nc.png,can\n")

    def line(index: int, name: str, best: str, other: str) -> str:
        predictions = [{"label": best, "score": 0.9}, {"label": other, "score": 0.1}]
        return json.dumps({"index": index, "image": name, "predictions": predictions}) + "\n"

    again = line(3, "a.png", "jar", "can")
    lines = [line(0, "a.png", "can", "jar"), line(1, "b.png", "jar", "can"), *[line(2, "c.png", "can", "jar")] * 2]
    for number, order in enumerate([[*lines, again], [again, *lines]]):
        (tmp_path / "p.jsonl").write_text("".join(order))
        out = tmp_path / f"e{number}"
        done = evaluated("--input", tmp_path / "t.csv", "--predictions", tmp_path / "p.jsonl", "--out", out)
        assert done.exit_code == 3
        told = document(out)
        assert told["failures"] == {"predicted twice, differently": 1}
        assert (told["metrics"]["accuracy"], told["predictions_without_label"]) == (1, 0)
