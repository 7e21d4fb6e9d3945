"""Every form of checkpoint: what score, evaluate, the server and embed make of it, and what a dry run tells."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import yaml
from adapters import adapted
from click.testing import CliRunner
from helpers import LABELS, MakeCheckpoint, agree, by_label, by_the_pipeline, jpeg, read_jsonl
from safetensors.torch import load_file, save_file
from server_process import b64
from test_timm import GOLDEN, expected, in_timms_names, labels_of

from deit_batch import embed, score
from deit_batch.cli import main
from deit_batch.evaluation.evaluate import EvaluationRequest, evaluate
from deit_batch.model.checkpoint import find_checkpoint, find_recipe
from deit_batch.options import Options
from deit_batch.plan import Plan
from deit_batch.report.evaluation import as_page
from deit_batch.serving.scorer import RequestScorer

Scores = list[dict[str, float]]

TIMM = {"timm plain": "deit", "timm distilled": "deit-distilled", "timm DeiT-III": "deit3"}
VITS = ["pth", "MLflow", "LABEL_n", "prefixed", "adapter"]
OTHERS = ["swin", "convnext", "beit", "dinov2", "siglip", "resnet"]


class Form(NamedTuple):
    """A checkpoint, what a dry run says of it, and the scores that its images are to have by another program."""

    model: Path
    said: str
    images: Path
    reference: Scores
    options: dict[str, Any] = {}  # noqa: RUF012


@pytest.fixture(scope="session")
def two_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    for number in range(2):
        (folder / f"{number}.jpg").write_bytes(jpeg(number))
    return folder


@pytest.fixture(params=[*TIMM, *VITS, *OTHERS])
def form(
    request: pytest.FixtureRequest, make_checkpoint: MakeCheckpoint, made: Callable[..., Path], vit: Path,
    two_photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> Form:  # fmt: skip
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    name: str = request.param
    if name in TIMM:
        return of_timm(TIMM[name], tmp_path)
    if name in OTHERS:
        return Form(made(name), "in the form of transformers", two_photos, by_the_pipeline(made(name), two_photos))
    model, same = tmp_path / "model", vit
    said, options = "in the form of transformers", {}
    if name == "pth":
        model, same = (
            tmp_path / "deit.pth",
            make_checkpoint(hidden_size=192, num_attention_heads=3, layer_norm_eps=1e-6),
        )
        torch.save({"model": in_timms_names(load_file(same / "model.safetensors"), "vit")}, model)
        (tmp_path / "names.txt").write_text("\n".join(LABELS))
        options = {"allow_pickle": True, "id2label": str(tmp_path / "names.txt"), "image_processor": str(same)}
        said = "in the form of timm"
    elif name == "MLflow":
        shutil.copytree(vit, model / "model")
        flavours = {"transformers": {"model_binary": "model", "task": "image-classification"}}
        (model / "MLmodel").write_text(yaml.safe_dump({"flavors": flavours}))
    elif name == "LABEL_n":
        model = same = make_checkpoint(id2label={n: f"LABEL_{n}" for n in range(5)}, label2id={})
    elif name == "prefixed":
        shutil.copytree(vit, model)
        weights = load_file(vit / "model.safetensors")
        save_file({f"module.{tensor}": values for tensor, values in weights.items()}, model / "model.safetensors")
    else:
        model, same = adapted(vit, tmp_path)
        said = "in the form of adapter"
    return Form(model, said, two_photos, by_the_pipeline(same, two_photos), options)


def of_timm(family: str, folder: Path) -> Form:
    (folder / "pictures").mkdir()
    for path in GOLDEN.glob("*.png"):
        shutil.copy(path, folder / "pictures")
    reference = [dict(zip(labels_of(family), scores, strict=True)) for scores in expected(family).tolist()]
    return Form(GOLDEN / family, "in the form of timm", folder / "pictures", reference)


def test_it_is_scored_evaluated_served_embedded_and_told(form: Form, tmp_path: Path) -> None:
    chosen: dict[str, Any] = {"model": str(form.model), "workers": 0, "top_k": None, **form.options}
    assert agree([by_label(record.predictions) for record in score(form.images, **chosen)], form.reference)
    assert agree(evaluated(form, chosen, tmp_path), form.reference)
    assert agree(asyncio.run(served(form, chosen)), form.reference)

    checkpoint = find_checkpoint(
        str(form.model), allow_pickle="allow_pickle" in form.options, id2label=form.options.get("id2label")
    )
    runtime = "native" if checkpoint.own_geometry else "transformers"
    assert checkpoint.runtime == runtime
    del chosen["top_k"]
    vectors = features(embed(form.images, features=("mean",), **chosen))
    assert vectors.shape[0] == 2
    if runtime == "native":  # of the other classes, test_auto_model.py compares them with their own
        theirs = features(embed(form.images, features=("mean",), runtime="transformers", **chosen))
        np.testing.assert_allclose(vectors, theirs, rtol=1e-4, atol=1e-5)

    flags = [f"--{name.replace('_', '-')}" for name in form.options if name == "allow_pickle"]
    flags += [text for name in ("id2label", "image_processor") if name in form.options
              for text in (f"--{name.replace('_', '-')}", form.options[name])]  # fmt: skip
    done = CliRunner().invoke(main, ["score", str(form.images), "--model", str(form.model), *flags, "--dry-run"])
    assert done.exit_code == 0, done.output
    model, told_runtime, recipe = done.stdout.splitlines()[-3:]
    assert model.startswith(f"model: {form.model}, {form.said}: {checkpoint.architecture}, 5 labels, 32x32 pixels, ")
    assert told_runtime == f"runtime: {runtime}"
    assert recipe.startswith("recipe: {")
    own = find_recipe(checkpoint, form.options.get("image_processor"))
    assert json.loads(recipe.removeprefix("recipe: ")) == json.loads(json.dumps(own.as_dict()))


def evaluated(form: Form, chosen: dict[str, Any], folder: Path) -> Scores:
    label = next(iter(form.reference[0]))
    lines = [f"{image},{label}" for image in sorted(form.images.iterdir())]
    (folder / "labels.csv").write_text("\n".join(["image,label", *lines]))
    options = Options(input=str(folder / "labels.csv"), **chosen)
    evaluate(EvaluationRequest(options=options, out=folder / "evaluation", gates={}, quiet=True), as_page)
    return [by_label(record["predictions"]) for record in read_jsonl(folder / "evaluation" / "predictions.jsonl")]


async def served(form: Form, chosen: dict[str, Any]) -> Scores:
    """By what answers the server's requests, which decodes in a process."""
    options = Options(input="", **{**chosen, "workers": 1})
    scorer = RequestScorer(Plan.of(options), options, window=0.0, batched=lambda number: None)
    running = asyncio.create_task(scorer.run())
    try:
        found = [await scorer(b64(image.read_bytes())) for image in sorted(form.images.iterdir())]
        return [by_label(predictions) for predictions in found if isinstance(predictions, list)]
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
        scorer.close()


def features(records: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.stack([record.features["mean"] for record in records])
