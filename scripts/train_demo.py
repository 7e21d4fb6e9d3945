"""Trains the embedded demo model on Fashion-MNIST and writes everything that ships with it.

    python scripts/train_demo.py train      # half an hour on 2 cores: the checkpoint
    python scripts/train_demo.py examples   # the sample pictures, from the test pictures
    python scripts/train_demo.py evaluate   # scores the 10,000 test pictures with `deit-batch score`

The data set is Debian's package dataset-fashion-mnist (MIT licence): `apt-get install dataset-fashion-mnist`.
Pictures are 28x28; the model has the 224-pixel geometry of the real DeiT checkpoints, with patches of 32
pixels, so each patch covers 4x4 pixels of the original.
"""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import DeiTConfig, DeiTForImageClassification, DeiTImageProcessorPil

REPOSITORY = Path(__file__).resolve().parent.parent
CHECKPOINT = REPOSITORY / "deit_batch" / "demo"
EXAMPLES = REPOSITORY / "examples"
DATASET = Path("/usr/share/datasets/fashion-mnist")
LABELS = ["t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"]

EPOCHS = 20
BATCH_SIZE = 256
LEARNING_RATE = 2e-3
SEED = 0
EXAMPLES_PER_CLASS = 4

MODEL_CARD = """\
---
license: mit
library_name: transformers
pipeline_tag: image-classification
---
# The demo model of deit-batch

A `DeiTForImageClassification` of 1.1 million parameters that tells ten kinds of clothing apart: {labels}. It knows
nothing else: shown a cat, it will name a garment. It is there so that deit-batch can be tried, tested and demonstrated
without a download.

| | |
| --- | --- |
| Trained on | Fashion-MNIST, 58,000 of its 60,000 training pictures (28x28, grey; MIT licence, Zalando SE) |
| Geometry | 224 pixels, patches of 32, 5 layers of width 112, 4 heads |
| Accuracy | {{accuracy}} of the 10,000 test pictures, as scored by `deit-batch score` in float32 |
| Made by | `python scripts/train_demo.py train`, checked by `python scripts/train_demo.py evaluate` |

The pictures in `examples/` are the first four test pictures of each class.
""".format(labels=", ".join(LABELS))


def read(split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The pictures, uint8 [n, 28, 28], and the class numbers, int64 [n], of "train" or "t10k"."""
    images = np.frombuffer(gzip.decompress((DATASET / f"{split}-images-idx3-ubyte.gz").read_bytes()), np.uint8)
    labels = np.frombuffer(gzip.decompress((DATASET / f"{split}-labels-idx1-ubyte.gz").read_bytes()), np.uint8)
    return torch.tensor(images[16:].reshape(-1, 28, 28)), torch.tensor(labels[8:], dtype=torch.int64)


def config(image_size: int, patch_size: int, channels: int) -> DeiTConfig:
    return DeiTConfig(
        image_size=image_size,
        patch_size=patch_size,
        num_channels=channels,
        hidden_size=112,
        num_hidden_layers=5,
        num_attention_heads=4,
        intermediate_size=448,
        id2label=dict(enumerate(LABELS)),
        label2id={label: number for number, label in enumerate(LABELS)},
        problem_type="single_label_classification",
    )


def small_model() -> DeiTForImageClassification:
    """The model as it is trained: on 28-pixel grey pictures, in patches of 6x6 every 4 pixels."""
    model = DeiTForImageClassification(config(image_size=28, patch_size=4, channels=1))
    projection = torch.nn.Conv2d(1, 112, kernel_size=6, stride=4, padding=1, padding_mode="replicate")
    model.deit.embeddings.patch_embeddings.projection = projection
    return model


def enlarge(small: DeiTForImageClassification) -> DeiTForImageClassification:
    """The same function for 224-pixel RGB pictures.

    Bilinear enlargement by eight is linear: a patch of 32x32 pixels is A x Aᵀ, where x is the 6x6 pixels around
    the patch in the original and A, [32, 6], the interpolation. So the wide kernel is the narrow one times the
    pseudo-inverse of A on both sides, spread over the three equal channels.
    """
    large = DeiTForImageClassification(config(image_size=224, patch_size=32, channels=3))
    unit = torch.eye(6)[:, None]
    interpolation = functional.interpolate(unit, scale_factor=8, mode="linear")[:, 0, 8:40].T
    inverse = torch.linalg.pinv(interpolation.double())
    weights = dict(small.state_dict())
    name = "deit.embeddings.patch_embeddings.projection.weight"
    kernel = inverse.T @ weights[name].double() @ inverse
    weights[name] = (kernel / 3).float().expand(-1, 3, -1, -1).contiguous()
    large.load_state_dict(weights)
    return large


def augment(images: torch.Tensor) -> torch.Tensor:
    """Flips each picture half the time and moves it by up to two pixels: uint8 [n, 28, 28] to the same."""
    n = len(images)
    images = torch.where(torch.rand(n, 1, 1) < 0.5, images.flip(-1), images)
    padded = functional.pad(images, (2, 2, 2, 2))
    rows = torch.randint(0, 5, (n, 1)) + torch.arange(28)
    columns = torch.randint(0, 5, (n, 1)) + torch.arange(28)
    return padded[torch.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]


def pixel_values(images: torch.Tensor) -> torch.Tensor:
    """uint8 [n, 28, 28] to float32 [n, 1, 28, 28] in -1..1."""
    return (images[:, None].float() / 255 - 0.5) / 0.5


@torch.inference_mode()
def accuracy(model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    model.eval()
    guesses = torch.cat([model(pixel_values(batch)).logits.argmax(-1) for batch in images.split(500)])
    return (guesses == labels).float().mean().item()


def train() -> None:
    torch.manual_seed(SEED)
    images, labels = read("train")
    held_out, images, held_out_labels, labels = images[:2000], images[2000:], labels[:2000], labels[2000:]
    model = small_model()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.998))
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.05)
    batches = len(images) // BATCH_SIZE
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=EPOCHS * batches)
    for epoch in range(EPOCHS):
        start = time.monotonic()
        model.train()
        for batch in torch.randperm(len(images)).split(BATCH_SIZE)[:batches]:
            logits = model(pixel_values(augment(images[batch]))).logits
            loss = functional.cross_entropy(logits, labels[batch], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            average.update_parameters(model)
        seconds = time.monotonic() - start
        score = accuracy(average, held_out, held_out_labels)
        print(f"epoch {epoch + 1}/{EPOCHS}: loss {loss.item():.3f}, held out {score:.4f}, {seconds:.0f} s", flush=True)
        assert isinstance(average.module, DeiTForImageClassification)
        save(enlarge(average.module))


def save(model: DeiTForImageClassification) -> None:
    model.save_pretrained(CHECKPOINT)
    processor = DeiTImageProcessorPil(
        size={"height": 224, "width": 224}, do_center_crop=False, resample=2, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    processor.save_pretrained(CHECKPOINT)


def examples() -> None:
    """The first few test pictures of each class, in a folder of its own."""
    images, labels = read("t10k")
    for number, label in enumerate(LABELS):
        folder = EXAMPLES / label.replace(" ", "-")
        folder.mkdir(parents=True, exist_ok=True)
        for place in (labels == number).nonzero()[:EXAMPLES_PER_CLASS, 0].tolist():
            Image.fromarray(images[place].numpy()).save(folder / f"{place:05}.png", optimize=True)


def evaluate() -> None:
    """Scores all test pictures as a user would, and writes the accuracy into the model card."""
    images, labels = read("t10k")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for place, image in enumerate(images):
            Image.fromarray(image.numpy()).save(folder / f"{place:05}.png")
        out = folder / "predictions.jsonl"
        command = ["deit-batch", "score", "--model", "demo", "--input", str(folder), "--out", str(out), "--top-k", "1"]
        subprocess.run(command, check=True)
        guesses = [json.loads(line)["predictions"][0]["label"] for line in out.read_bytes().splitlines()]
    hits = [guess == LABELS[label] for guess, label in zip(guesses, labels.tolist(), strict=True)]
    accuracy = f"{100 * sum(hits) / len(hits):.2f} %"
    print(f"{sum(hits):,} of {len(hits):,} right: {accuracy}")
    (CHECKPOINT / "README.md").write_text(MODEL_CARD.format(accuracy=accuracy), encoding="utf-8")


if __name__ == "__main__":
    {"train": train, "examples": examples, "evaluate": evaluate}[sys.argv[1]]()
