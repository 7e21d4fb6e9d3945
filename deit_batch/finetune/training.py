"""What a step does, how a model is judged, and how a run of steps is stopped and continued."""

from __future__ import annotations

import json
import logging
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, average_precision_score, balanced_accuracy_score, f1_score
from torch import Tensor, nn
from torch.nn import functional
from transformers import EvalPrediction, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from deit_batch.errors import DeitBatchError
from deit_batch.finetune.augmentation import Augmentation
from deit_batch.finetune.students import Student
from deit_batch.finetune.teacher import Teacher
from deit_batch.model.recipe import Recipe
from deit_batch.system.signals import Stop

HIGHER_IS_BETTER = {
    "accuracy": True,
    "balanced_accuracy": True,
    "f1_macro": True,
    "average_precision": True,
    "loss": False,
}

logger = logging.getLogger("deit_batch")

Loss = Callable[[Tensor, Tensor], Tensor]
"""Of logits and targets, both [n, classes]."""


class Learner(nn.Module):
    """The student with all that training does around it: `pixels`, uint8 [n, height, width, 3], and `targets`, float32
    [n, classes], to the loss and the logits. Augmentation and teacher are there in training only.

    A plain module on purpose. Of a PreTrainedModel, the Trainer of transformers 5 writes checkpoints under the Hub's
    names for the tensors, reads them back under the model's own, and takes no notice of those that it does not find: a
    run that is resumed, or takes its best epoch, would go on with weights of two kinds (its issue 48805)."""

    _mean: Tensor
    _std: Tensor

    def __init__(
        self, student: Student, recipe: Recipe, loss: Loss, augmentation: Augmentation, teacher: Teacher | None
    ) -> None:
        super().__init__()
        self.student = student
        self._loss, self._augmentation, self._teacher = loss, augmentation, teacher
        self._scale = 255 * recipe.rescale_factor  # augmentation takes values in 0..1
        shape = (1, 3, 1, 1)
        self.register_buffer("_mean", torch.tensor(recipe.mean).view(shape), persistent=False)
        self.register_buffer("_std", torch.tensor(recipe.std).view(shape), persistent=False)

    def forward(self, pixels: Tensor, targets: Tensor) -> dict[str, Tensor]:
        values = pixels.permute(0, 3, 1, 2).float().div_(255)  # in place: fresh memory costs more than the arithmetic
        if self.training:
            values, targets = self._augmentation(values, targets)
        taught = self._teacher(values) if self.training and self._teacher else None
        outputs = self.student(pixel_values=values.mul_(self._scale).sub_(self._mean).div_(self._std))
        loss = self._loss(outputs.logits, targets) if taught is None else self._distilled(outputs, targets, taught)
        return {"loss": loss, "logits": outputs.logits}

    def _distilled(self, outputs: Any, targets: Tensor, taught: Tensor) -> Tensor:
        """Half by the truth, at the [CLS] token; half by the teacher's label, at the distillation token (arXiv
        2012.12877, equation 3)."""
        truth = self._loss(outputs.cls_logits, targets)
        return (truth + functional.cross_entropy(outputs.distillation_logits, taught)) / 2


def loss_for(*, multi_label: bool, label_smoothing: float) -> Loss:
    """Cross-entropy with soft targets, or binary cross-entropy for each class where an image may have several."""
    if multi_label:
        return functional.binary_cross_entropy_with_logits
    return lambda logits, targets: functional.cross_entropy(logits, targets, label_smoothing=label_smoothing)


def metrics_for(*, multi_label: bool) -> Callable[[EvalPrediction], dict[str, float]]:
    return _multi_label_metrics if multi_label else _metrics


def _metrics(prediction: EvalPrediction) -> dict[str, float]:
    truth, guess = (values.argmax(-1) for values in _arrays(prediction))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "y_pred contains classes not in y_true")
        return {
            "accuracy": float(accuracy_score(truth, guess)),
            "balanced_accuracy": float(balanced_accuracy_score(truth, guess)),
            "f1_macro": float(f1_score(truth, guess, average="macro", zero_division=0)),
        }


def _multi_label_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """At a threshold of 0.5, but for the average precision: the mean of the classes that are there."""
    truth, logits = _arrays(prediction)
    there = truth.any(0)
    return {
        "f1_macro": float(f1_score(truth, logits > 0, average="macro", zero_division=0)),
        "accuracy": float(accuracy_score(truth, logits > 0)),
        "average_precision": float(average_precision_score(truth[:, there], logits[:, there], average="macro")),
    }


def _arrays(prediction: EvalPrediction) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    logits = prediction.predictions
    return np.asarray(prediction.label_ids), np.asarray(logits[0] if isinstance(logits, tuple) else logits)


class StopAndSave(TrainerCallback):
    """When a signal has come, saves after the step in hand and ends there. A loss that is no number ends the run."""

    def __init__(self, stop: Stop) -> None:
        self._stop = stop

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        ends_epoch = math.isclose(state.epoch or 0, round(state.epoch or 0))
        control.should_save |= self._stop.asked and not ends_epoch  # there, it is judged and saved anyhow
        return control

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._stop.check()

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any) -> None:
        loss = more.get("logs", {}).get("loss")
        if loss is not None and not math.isfinite(float(loss)):
            raise DeitBatchError(
                f"the loss is {loss} at step {state.global_step}; try a lower --learning-rate, or --bf16 for --fp16"
            )


class EarlyStopping(TrainerCallback):
    """Ends the training after so many epochs without a better one. It is told by the log alone, so that a resumed run
    ends where it would have ended (transformers' own counts anew)."""

    def __init__(self, patience: int, metric: str) -> None:
        self._patience, self._metric = patience, metric

    def is_over(self, state: TrainerState) -> bool:
        values = [entry[name] for entry in state.log_history if (name := f"eval_{self._metric}") in entry]
        if not HIGHER_IS_BETTER[self._metric]:
            values = [-value for value in values]
        return bool(values) and len(values) - 1 - values.index(max(values)) >= self._patience

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        control.should_training_stop |= self.is_over(state)


def last_checkpoint(folder: Path) -> str | None:
    """The newest one that is whole: the Trainer writes its state last."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]), reverse=True)
    for path in found:
        try:
            json.loads((path / "trainer_state.json").read_bytes())
        except (OSError, ValueError):
            continue
        return str(path)
    return None


class TrainingProgress(TrainerCallback):
    """A line an epoch."""

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any) -> None:
        metrics = more.get("metrics", {})
        shown = ", ".join(
            f"{name} {metrics[f'eval_{name}']:.4f}" for name in HIGHER_IS_BETTER if f"eval_{name}" in metrics
        )
        epochs = f"epoch {state.epoch or 0:g} of {state.num_train_epochs:g}"
        logger.info("%s, step %s of %s: %s", epochs, f"{state.global_step:,}", f"{state.max_steps:,}", shown)
