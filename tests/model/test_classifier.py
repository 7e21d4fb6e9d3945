"""Scores equal the pipeline's, and a checkpoint that would give noise is refused."""

from __future__ import annotations

import gc
import json
import os
import shutil
import weakref
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import LABELS, MakeCheckpoint, jpeg, read_jsonl, scored, write_all_kinds
from misbehaving import Server
from safetensors.torch import load_file, save_file
from transformers import pipeline

from deit_batch import score
from deit_batch.errors import CheckpointError, DeitBatchError, UsageError
from deit_batch.io import counted
from deit_batch.limits import Limits
from deit_batch.loading.decode import decode
from deit_batch.model.architecture import Geometry
from deit_batch.model.checkpoint import find_checkpoint, find_recipe
from deit_batch.model.classifier import (
    GPU_BATCH,
    GPU_SHARE,
    Classifier,
    Forward,
    choose_device,
    choose_dtype,
    compiled,
    load_classifier,
    make_score_function,
    max_batch_size,
)
from deit_batch.model.engines import Engine, Result, Scores, Threads
from deit_batch.model.transformer import load_weights
from deit_batch.options import Options
from deit_batch.plan import Plan

CPU = torch.device("cpu")


def assert_equals_pipeline(folder: Path, images: Path, runtimes: Any = ("native",), **options: Any) -> None:
    classifier = pipeline("image-classification", model=str(folder), dtype=torch.float32)
    expected = {str(image): classifier(str(image), top_k=len(LABELS)) for image in sorted(images.iterdir())}
    assert len(expected) > 30
    for runtime in runtimes:
        records = list(score(str(images), model=str(folder), top_k=None, runtime=runtime, **options))
        assert [record.image for record in records] == list(expected)
        for record in records:
            assert record.error is None, record
            theirs = expected[str(record.image)]
            assert [p["label"] for p in record.predictions] == [p["label"] for p in theirs], record.image
            for one, other in zip(record.predictions, theirs, strict=True):
                assert one["score"] == pytest.approx(other["score"], abs=1e-5), record.image


def test_all_three_classes_score_every_kind_of_image_as_the_pipeline_does_by_either_runtime(
    checkpoint: Path, all_kinds: Path
) -> None:
    assert_equals_pipeline(checkpoint, all_kinds, runtimes=("native", "transformers"), workers=0)


@pytest.mark.parametrize("features", [None, ("cls",)])
def test_what_float16_can_not_hold_is_scored_in_float32(
    vit: Path, photos: Path, tmp_path: Path, features: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A checkpoint by which half of the images come to numbers beyond 65,504, where float16 ends."""
    folder = tmp_path / "large"
    shutil.copytree(vit, folder)
    plan = replace(Plan.of(Options(input=str(photos), model=str(folder), device="cpu")), features=("cls",))
    decoded = [decode(jpeg(number), plan.recipe, Limits()).copy() for number in range(40)]
    pixels = torch.stack([torch.from_numpy(values) for values in decoded])

    def results(plan: Plan) -> torch.Tensor:
        with closing(plan.load()) as classifier:
            return classifier(pixels)

    weights = load_file(folder / "model.safetensors")
    layer, numbers = "vit.layernorm", results(plan)[:, 0].abs()
    if not features:
        layer = "classifier"
        numbers = torch.nn.functional.linear(results(plan)[:, 0], weights[f"{layer}.weight"], weights[f"{layer}.bias"])
    for name in (f"{layer}.weight", f"{layer}.bias"):
        weights[name] *= 65_504 / numbers.max(-1).values.median()
    save_file(weights, folder / "model.safetensors")
    plan = replace(Plan.of(Options(input=str(photos), model=str(folder), device="cpu")), features=features)

    half, exact = results(replace(plan, dtype="float16")), results(plan)
    beyond = ~half.flatten(1).isfinite().all(-1)
    assert 0 < beyond.sum() < 40
    with caplog.at_level("WARNING", "deit_batch"):
        both = results(replace(plan, dtype="float16", float32_fallback=True))
    assert torch.equal(both[~beyond], half[~beyond])
    assert torch.equal(both[beyond], exact[beyond])
    assert f"the scores are not finite: {counted(int(beyond.sum()), 'image')}" in caplog.text


def test_what_can_not_be_scored_again_fails_and_loses_nothing(messages: list[str]) -> None:
    def load_exact() -> Classifier:
        raise DeitBatchError("the model's weights do not fit into the memory of the device")

    def scores(pixels: torch.Tensor) -> torch.Tensor:
        values = pixels.flatten(1)[:, :2].float()
        values[0] = torch.nan
        return values

    engine = Threads(scores, CPU, passes=1, threads=1)
    classifier = Classifier(engine, 4, load_exact)
    found = classifier(torch.ones(4, 2, 2, 3, dtype=torch.uint8))
    assert found.isfinite().all(-1).tolist() == [False, True, True, True]
    assert any("can't be scored in float32" in message for message in messages)
    classifier.close()


def test_multi_label_scores_equal_the_pipelines(make_checkpoint: MakeCheckpoint, all_kinds: Path) -> None:
    folder = make_checkpoint("DeiTForImageClassification", problem_type="multi_label_classification")
    assert_equals_pipeline(folder, all_kinds, workers=0)
    sums = [
        sum(p["score"] for p in record.predictions) for record in score(str(all_kinds), model=str(folder), workers=0)
    ]
    assert any(abs(total - 1) > 0.1 for total in sums)  # each label for itself


def test_a_checkpoint_saved_in_float16_is_scored_in_float32_on_a_cpu(
    make_checkpoint: MakeCheckpoint, all_kinds: Path, tmp_path: Path
) -> None:
    from transformers import ViTForImageClassification

    folder = shutil.copytree(make_checkpoint(), tmp_path / "half")
    ViTForImageClassification.from_pretrained(folder).half().save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float16"
    assert_equals_pipeline(folder, all_kinds, workers=0)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_lower_precision_gives_nearly_the_same_scores(vit: Path, all_kinds: Path, dtype: str) -> None:
    exact = score(str(all_kinds), model=str(vit), workers=0, top_k=None)
    rough = score(str(all_kinds), model=str(vit), workers=0, top_k=None, dtype=dtype)
    for one, other in zip(exact, rough, strict=True):
        scores = {p["label"]: p["score"] for p in other.predictions}
        for p in one.predictions:
            assert scores[p["label"]] == pytest.approx(p["score"], abs=0.05)


def load(folder: Path) -> None:
    checkpoint = find_checkpoint(str(folder))
    recipe = find_recipe(checkpoint, None)
    load_classifier(checkpoint, recipe, device=CPU, dtype="float32", pass_size=4).close()


def edit_config(folder: Path, target: Path, **changes: Any) -> Path:
    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text())
    config.update(changes)
    (target / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return target


@pytest.mark.parametrize(
    ("saved", "loaded"),
    [
        ("ViTForImageClassification", "DeiTForImageClassification"),
        ("DeiTForImageClassificationWithTeacher", "DeiTForImageClassification"),
        ("DeiTForImageClassification", "DeiTForImageClassificationWithTeacher"),
    ],
)
def test_weights_that_do_not_load_are_refused(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, saved: str, loaded: str
) -> None:
    folder = edit_config(make_checkpoint(saved), tmp_path / "edited", architectures=[loaded], model_type="deit")
    (folder / "preprocessor_config.json").write_text('{"image_processor_type": "ViTImageProcessor", "size": 32}')
    with pytest.raises(CheckpointError, match=r"must not be scored with: it is no .* would be random"):
        load(folder)


def test_no_image_is_read_before_the_checkpoint_is_found_fit(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, web: Server
) -> None:
    saved = make_checkpoint("DeiTForImageClassificationWithTeacher")
    folder = edit_config(saved, tmp_path / "edited", architectures=["DeiTForImageClassification"])
    (tmp_path / "t.txt").write_text(f"{web.address}/login.jpg\n" * 40)
    with pytest.raises(CheckpointError, match="random"):
        next(score(tmp_path / "t.txt", model=str(folder), limits=Limits(allow_private_hosts=True)))
    assert web.logins == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["ViTModel"]}, "not an image classifier"),  # no head
        ({"architectures": None}, "model of no stated class"),
        ({"model_type": "deit"}, "has model_type vit, not deit"),
        ({"id2label": {"0": "can", "2": "jar"}}, "skips class 1"),
        ({"problem_type": "regression"}, "regression"),
        ({"num_channels": 1}, "only RGB"),
        ({"image_size": 64}, "the shape of its vit.embeddings.position_embeddings"),
        ({"id2label": {"0": "can", "1": "jar"}}, "the shape of its classifier.weight is"),  # a head of another size
        ({"patch_size": 16}, "the shape of its vit.embeddings.position_embeddings is"),
        ({"num_hidden_layers": 1}, "has no place for 16 of its weights"),
        ({"num_hidden_layers": 3}, "16 of its weights were not in the checkpoint"),
        ({"id2label": {"0": None}}, "no text"),
        ({"image_size": "abc"}, "can't be understood"),
        ({"architectures": [1, 2]}, "model of no stated class"),
        ({"num_hidden_layers": 10**6}, "has 1,000,000 layers, and its weights are only 40"),
        ({"hidden_size": float("inf")}, "hidden_size is inf; it must be a whole number from 1 up"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
        ({"patch_size": 64}, "no patch of 64 pixels fits into an image of 32"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps is nan"),
        ({"image_size": [32]}, "must be a number, or height and width"),
        ({"qkv_bias": "no"}, "qkv_bias is 'no'; it must be true or false"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'; a DeiT's is gelu"),
        ({"num_attention_heads": 3}, "hidden_size 32 is no multiple"),
    ],
)
def test_a_checkpoint_with_something_amiss_is_refused(
    vit: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        load(edit_config(vit, tmp_path / "edited", **changes))


def test_a_recipe_for_images_of_another_size_is_refused(vit: Path, tmp_path: Path) -> None:
    folder = edit_config(vit, tmp_path / "edited")
    (folder / "preprocessor_config.json").write_text('{"size": 64}')
    with pytest.raises(CheckpointError, match=r"gives images of 64x64 pixels .* takes 32x32"):
        load(folder)


def test_the_scores_of_an_image_do_not_depend_on_the_batch_it_comes_in(vit: Path, photos: Path, tmp_path: Path) -> None:
    for size in (16, 23, 40):
        scored(photos, vit, tmp_path, out=f"{size}.jsonl", batch_size=size)
    assert len({(tmp_path / f"{size}.jsonl").read_bytes() for size in (16, 23, 40)}) == 1


def test_scores_depend_neither_on_order_nor_workers_nor_cores(vit: Path, photos: Path, tmp_path: Path) -> None:
    def found(input: Path, name: str, **options: Any) -> dict[str, Any]:
        records = read_jsonl(scored(input, vit, tmp_path, name, batch_size=16, top_k=None, **options))
        return {record["image"]: record["predictions"] for record in records}

    expected = found(photos, "p.jsonl")
    (tmp_path / "t.txt").write_text("".join(f"{path}\n" for path in sorted(photos.iterdir(), reverse=True)))
    assert found(tmp_path / "t.txt", "turned.jsonl", workers=2) == expected
    cores = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(cores)})
        assert found(photos, "one_core.jsonl") == expected
    finally:
        os.sched_setaffinity(0, cores)


def test_damaged_weights_are_refused_in_one_line(vit: Path, tmp_path: Path) -> None:
    folder = edit_config(vit, tmp_path / "edited")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="can't be loaded") as caught:
        load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["cuda", "cuda:7", "mps", "meta", "teapot"])
def test_a_device_that_is_not_there_is_wrong_usage(name: str) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(UsageError, match=f"--device {name}"):
        choose_device(name)


def test_auto_is_half_precision_on_a_gpu_only(vit: Path) -> None:
    checkpoint, gpu = find_checkpoint(str(vit)), torch.device("cuda")
    assert choose_dtype("auto", CPU, checkpoint) == "float32"
    assert choose_dtype("auto", gpu, checkpoint) == "float16"
    assert choose_dtype("bfloat16", gpu, checkpoint) == "bfloat16"
    with pytest.raises(UsageError, match="for CPUs only"):
        choose_dtype("int8", gpu, checkpoint)


def test_scores_that_are_not_finite_are_failures(vit: Path, tmp_path: Path) -> None:
    folder = edit_config(vit, tmp_path / "edited")
    weights = load_file(folder / "model.safetensors")
    for name in ("vit.layernorm.weight", "classifier.weight"):
        weights[name] *= 1e30  # together more than float32 can hold
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "images").mkdir()
    write_all_kinds(tmp_path / "images")
    records = list(score(str(tmp_path / "images"), model=str(folder), workers=0, limit=3))
    assert [record.error and record.error.type for record in records] == ["ScoreError"] * 3
    assert [record.predictions for record in records] == [[], [], []]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused(vit: Path, tmp_path: Path, value: float) -> None:
    folder = edit_config(vit, tmp_path / "edited")
    weights = load_file(folder / "model.safetensors")
    weights["classifier.bias"][1] = value
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"is broken: classifier\.bias has numbers that are not finite"):
        load_weights(find_checkpoint(str(folder)), device=CPU, dtype=torch.float32)


class Small:
    """A model on a device whose memory holds so many images."""

    def __init__(self, forward: Forward, room: int) -> None:
        self.forward, self.room = forward, room
        self.seen: list[int] = []

    def __call__(self, pixel_values: torch.Tensor) -> torch.Tensor:
        if len(pixel_values) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        self.seen.append(len(pixel_values))
        return self.forward(pixel_values)


def test_a_batch_that_does_not_fit_is_split_and_that_is_said_once(vit: Path, messages: list[str]) -> None:
    checkpoint = find_checkpoint(str(vit))
    recipe = find_recipe(checkpoint, None)
    forward = load_weights(checkpoint, device=CPU, dtype=torch.float32)

    def classifier(forward: Forward) -> Classifier:
        scores = make_score_function(forward, recipe, device=CPU, dtype=torch.float32, multi_label=False)
        return Classifier(Threads(scores, CPU, passes=1, threads=1), pass_size=9)

    pixels = torch.randint(0, 256, (9, 32, 32, 3), dtype=torch.uint8)
    whole = classifier(forward)
    small = Small(forward, room=5)
    split = classifier(small)
    for _ in range(2):
        assert torch.allclose(split(pixels), whole(pixels), atol=1e-6)
    assert small.seen == [4, 4, 4] * 2  # the last one filled up
    assert messages == ["9 images at once do not fit into the memory of the device: going on by 4"]
    with pytest.raises(DeitBatchError, match="one image alone does not fit"):
        classifier(Small(forward, room=0))(pixels)


class Card:
    """Computes scores in a memory that holds so many images a pass, a white one being as large as seven. It notes how
    many images each pass was of, and how many tensors of larger ones, which have failed, are alive when one begins."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._made: list[tuple[int, weakref.ref[torch.Tensor]]] = []
        self.passes: list[int] = []
        self.kept: list[int] = []

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        size = len(pixels)
        self.passes.append(size)
        self.kept.append(sum(larger > size and ref() is not None for larger, ref in self._made))
        rows = self.made(size, pixels.flatten(1).float())
        return self._layer(size, rows)

    def made(self, size: int, tensor: torch.Tensor) -> torch.Tensor:
        self._made.append((size, weakref.ref(tensor)))
        return tensor

    def _layer(self, size: int, rows: torch.Tensor) -> torch.Tensor:
        hidden = self.made(size, rows[:, :5] / 255)
        return self._head(size, hidden)

    def _head(self, size: int, hidden: torch.Tensor) -> torch.Tensor:
        logits = self.made(size, hidden * 3)
        if size + 6 * int((hidden == 1).all(-1).sum()) > self._room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return logits.softmax(-1)


class AtOnce:
    """An engine whose passes fail when they are started, as those on a GPU do."""

    def __init__(self, card: Card) -> None:
        self._card = card

    def start(self, pixels: torch.Tensor, pass_size: int) -> Result:
        black = pixels.new_zeros(pass_size - len(pixels), *pixels.shape[1:])
        scores = self._card.made(pass_size, self._card(torch.cat([pixels, black]))[: len(pixels)])
        return lambda: scores

    def empty_cache(self) -> None: ...

    def close(self) -> None: ...


def in_a_thread(scores: Scores) -> Engine:
    return Threads(scores, CPU, passes=1, threads=1)


@pytest.fixture
def no_collector() -> Iterator[None]:
    """What is in a cycle of references stays."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("engine", [AtOnce, in_a_thread])
def test_nothing_of_a_pass_that_did_not_fit_is_there_when_a_smaller_one_begins(
    engine: Callable[[Card], Engine], messages: list[str]
) -> None:
    card = Card(room=8)
    classifier = Classifier(engine(card), pass_size=16)
    batches = [torch.randint(0, 255, (20, 4, 4, 3), dtype=torch.uint8) for _ in range(3)]
    batches[0][9] = 255
    under_way = [classifier.submit(batch) for batch in batches[:2]]
    for batch, result in zip(batches, under_way, strict=False):
        assert torch.equal(result(), Card(room=1000)(batch))
    assert set(card.passes) == {16, 8, 4, 2}  # at 8 and 4, passes beside the one with the white image fit
    assert set(card.kept) == {0}
    card.passes.clear()
    assert torch.equal(classifier(batches[2]), Card(room=1000)(batches[2]))
    assert card.passes == [2] * 10
    assert messages == ["16 images at once do not fit into the memory of the device: going on by 2"]


def test_what_never_fits_is_an_error_and_no_warning(messages: list[str]) -> None:
    with pytest.raises(DeitBatchError, match="one image alone does not fit"):
        Classifier(AtOnce(Card(room=0)), pass_size=8)(torch.zeros(8, 4, 4, 3, dtype=torch.uint8))
    assert messages == []


class Late:
    """An engine that has room for two images, which turns out when a pass ends. It notes what is asked of it, and how
    many results somebody has when the cache is emptied."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self._results: list[weakref.ref[Result]] = []

    def start(self, pixels: torch.Tensor, pass_size: int) -> Result:
        self.asked.append(f"start {pass_size}")

        def result() -> torch.Tensor:
            self.asked.append(f"end {pass_size}")
            if pass_size > 2:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return torch.zeros(len(pixels), 5)

        self._results.append(weakref.ref(result))
        return result

    def empty_cache(self) -> None:
        self.asked.append(f"empty the cache beside {sum(ref() is not None for ref in self._results)} results")

    def close(self) -> None: ...


@pytest.mark.usefixtures("no_collector")
def test_smaller_passes_begin_when_all_of_the_batch_have_ended_and_the_cache_is_empty() -> None:
    late = Late()
    Classifier(late, pass_size=4)(torch.zeros(8, 4, 4, 3, dtype=torch.uint8))
    assert late.asked[:5] == ["start 4"] * 2 + ["end 4"] * 2 + ["empty the cache beside 0 results"]
    assert late.asked[5:] == ["start 2"] * 4 + ["end 2"] * 4


@pytest.mark.parametrize("gib", [1, 4, 8, 24, 80])
@pytest.mark.parametrize("size", [224, 384])
def test_a_batch_is_as_large_as_half_the_cards_memory_holds(gib: int, size: int) -> None:
    base = Geometry(
        architecture="ViTForImageClassification",
        classes=1000,
        image_size=(size, size),
        layer_norm_eps=1e-12,
        qkv_bias=True,
    )
    images = max_batch_size(base, 2, gib * 2**30)
    tokens = (size // 16) ** 2 + 1
    at_least = tokens * 4 * 768 * 2  # the activations between two layers, and queries, keys and values
    assert images * at_least < gib * 2**30 * GPU_SHARE
    assert images in (8, 16, 32, 64, 128)
    assert images == GPU_BATCH or gib < 8
    assert max_batch_size(base, 2, 2**20) == 1


def test_a_compiled_model_is_one_graph_with_the_same_scores(vit: Path) -> None:
    checkpoint = find_checkpoint(str(vit))
    recipe = find_recipe(checkpoint, None)
    forward = load_weights(checkpoint, device=CPU, dtype=torch.float32)
    scores = make_score_function(forward, recipe, device=CPU, dtype=torch.float32, multi_label=False)
    pixels = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.allclose(compiled(scores, pixels)(pixels), scores(pixels), atol=1e-6)


def test_a_batch_that_does_not_fit_when_compiled_is_left_to_be_split(
    monkeypatch: pytest.MonkeyPatch, messages: list[str]
) -> None:
    """Which says so."""
    monkeypatch.setattr(torch, "compile", lambda scores, **_: scores)
    card = Card(room=2)
    pixels = torch.zeros(4, 4, 4, 3, dtype=torch.uint8)
    classifier = Classifier(in_a_thread(compiled(card, pixels)), pass_size=4)
    assert torch.equal(classifier(pixels), Card(room=4)(pixels))
    assert messages == ["4 images at once do not fit into the memory of the device: going on by 2"]


def test_what_can_not_be_compiled_is_said_in_one_line() -> None:
    def scores(pixels: torch.Tensor) -> torch.Tensor:
        print(float(pixels.sum()))  # no graph can hold it
        return pixels.float()

    with pytest.raises(DeitBatchError, match="can't be compiled here; leave out --compile") as caught:
        compiled(scores, torch.zeros(1, 8, 8, 3, dtype=torch.uint8))
    assert "\n" not in str(caught.value)


def test_compiling_is_for_gpus(vit: Path, photos: Path) -> None:
    with pytest.raises(UsageError, match="compile=True is for NVIDIA GPUs"):
        list(score(photos, model=str(vit), device="cpu", compile=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("compile", [False, True])
def test_on_a_gpu_batches_overlap_and_scores_stay_in_order(vit: Path, compile: bool) -> None:
    checkpoint, gpu = find_checkpoint(str(vit)), torch.device("cuda")
    recipe = find_recipe(checkpoint, None)
    there = load_classifier(checkpoint, recipe, device=gpu, dtype="float32", pass_size=8, compile=compile)
    here = load_classifier(checkpoint, recipe, device=CPU, dtype="float32", pass_size=8)
    batches = [torch.randint(0, 256, (count, 32, 32, 3), dtype=torch.uint8).pin_memory() for count in (8, 8, 5, 16, 1)]
    results = [there.submit(batch) for batch in batches]
    for batch, result in zip(batches, results, strict=True):
        assert torch.allclose(result(), here(batch), atol=1e-3)
