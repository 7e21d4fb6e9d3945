"""What a step does, how a model is judged, and how a run of steps is stopped and continued."""

from __future__ import annotations

import json
import logging
import math
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit, softmax
from sklearn.metrics import accuracy_score, average_precision_score, balanced_accuracy_score, f1_score, log_loss
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader
from transformers import EvalPrediction, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from deit_batch.errors import DeitBatchError, InputError, Interrupted, UsageError
from deit_batch.evaluation.metrics import balanced_accuracies, jaccard_of_images, log_loss_of_labels
from deit_batch.finetune.mixing import erase, mix
from deit_batch.finetune.processes import Processes
from deit_batch.finetune.sampling import EpochSampler
from deit_batch.finetune.settings import LOWER_IS_BETTER, METRICS, Settings
from deit_batch.finetune.students import Student
from deit_batch.finetune.teacher import Teacher
from deit_batch.loading.worker import start_worker
from deit_batch.model.recipe import Recipe
from deit_batch.system.signals import Stop

logger = logging.getLogger("deit_batch")

Loss = Callable[[Tensor, Tensor], Tensor]
"""Of logits and targets, both [n, classes]."""


class Learner(nn.Module):
    """The student with all that training does around it: `pixels`, uint8 [n, height, width, 3], and `targets`, float32
    [n, classes], to the loss and the logits. The teacher is there in training only.

    A plain module on purpose. Of a PreTrainedModel, the Trainer of transformers 5 writes checkpoints under the Hub's
    names for the tensors, reads them back under the model's own, and takes no notice of those that it does not find: a
    run that is resumed, or takes its best epoch, would go on with weights of two kinds (its issue 48805)."""

    _mean: Tensor
    _std: Tensor

    def __init__(
        self, student: Student, recipe: Recipe, loss: Loss, settings: Settings, teacher: Teacher | None = None
    ) -> None:
        super().__init__()
        self.student = student
        decay = settings.ema_decay
        self.average = averaged(student, decay) if decay else None
        self._loss, self._settings, self._teacher = loss, settings, teacher
        self._scale = 255 * recipe.rescale_factor  # erasing, mixing and the teacher take values in 0..1
        shape = (1, 3, 1, 1)
        self.register_buffer("_mean", torch.tensor(recipe.mean).view(shape), persistent=False)
        self.register_buffer("_std", torch.tensor(recipe.std).view(shape), persistent=False)

    @property
    def result(self) -> Student:
        """What is validated and kept: the student, or the average of its weights."""
        return self.average.module if self.average else self.student

    def forward(
        self, pixels: Tensor, targets: Tensor, erased: Tensor | None = None, mixing: Tensor | None = None
    ) -> dict[str, Tensor]:
        """`erased` and `mixing`: as the batches have them (data.py)."""
        values = pixels.permute(0, 3, 1, 2).float().div_(255)  # in place: fresh memory costs more than the arithmetic
        if erased is not None:
            values = erase(values, erased, self._mean / self._scale, self._std / self._scale)
        if mixing is not None:
            values, targets = mix(values, targets, mixing)
        taught = self._teacher(values) if self.training and self._teacher else None
        model = self.student if self.training else self.result
        outputs = model(pixel_values=values.mul_(self._scale).sub_(self._mean).div_(self._std))
        loss = self._loss(outputs.logits, targets) if taught is None else self._distilled(outputs, targets, taught)
        return {"loss": loss, "logits": outputs.logits}

    def _distilled(self, outputs: Any, targets: Tensor, taught: Tensor) -> Tensor:
        """By the truth, at the [CLS] token, and by the teacher, at the distillation token."""
        truth = self._loss(outputs.cls_logits, targets)
        soft = self._settings.distillation_type == "soft"
        tau = self._settings.distillation_tau if soft else None
        return torch.lerp(
            truth, distillation_loss(outputs.distillation_logits, taught, tau), self._settings.teachers_share
        )


def distillation_loss(logits: Tensor, taught: Tensor, tau: float | None) -> Tensor:
    """Of the student's logits and the teacher's, both [n, classes]: the cross-entropy with the teacher's label (hard
    distillation, arXiv 2012.12877, equation 3); with a temperature `tau`, τ² times the Kullback-Leibler divergence of
    the two at that temperature (soft distillation, equation 2), as a mean of the images."""
    if tau is None:
        return functional.cross_entropy(logits, taught.argmax(-1))
    ours, theirs = (functional.log_softmax(one.float() / tau, -1) for one in (logits, taught))
    return functional.kl_div(ours, theirs, reduction="batchmean", log_target=True) * tau**2


def averaged(student: Student, decay: float) -> AveragedModel:
    """A copy of the student whose weights become the exponential moving average of its own."""
    average = AveragedModel(student, multi_avg_fn=get_ema_multi_avg_fn(decay))
    return average.requires_grad_(False)


class AverageWeights(TrainerCallback):
    """Takes the student's weights into the average, after every step."""

    def __init__(self, learner: Learner) -> None:
        self._learner = learner

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._learner.average:
            self._learner.average.update_parameters(self._learner.student)


class TellEpoch(TrainerCallback):
    """Says to the sampler which epoch begins. accelerate does so, too, but not through what it wraps around the sampler
    where several processes go on in the middle of an epoch."""

    def __init__(self, sampler: EpochSampler) -> None:
        self._sampler = sampler

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._sampler.set_epoch(math.floor((state.epoch or 0) + 1e-6))  # in the middle of one, it is a fraction


class EpochTrainer(Trainer):
    """A Trainer whose epochs are those of EpochSampler, whose workers leave signals to the main process, and whose
    weight decay spares the tokens and the positions, as DeiT's own does (models.py, no_weight_decay)."""

    repeats = 1

    def get_train_dataloader(self) -> Any:
        sampler = EpochSampler(len(self.train_dataset), self.args.seed, self.repeats)  # type: ignore[arg-type]
        self.add_callback(TellEpoch(sampler))
        return self._loader(self.train_dataset, self._train_batch_size, sampler)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        return self._eval_loader

    @cached_property
    def _eval_loader(self) -> Any:
        """One for all epochs: its workers stay, and accelerate forgets none of what it has prepared."""
        return self._loader(self.eval_dataset, self.args.eval_batch_size, None)

    def _loader(self, images: Any, batch_size: int, sampler: EpochSampler | None) -> Any:
        workers = self.args.dataloader_num_workers
        loader = DataLoader(
            images,
            batch_size,
            sampler=sampler,
            collate_fn=self.data_collator,
            num_workers=workers,
            pin_memory=self.args.dataloader_pin_memory,
            persistent_workers=workers > 0,
            worker_init_fn=start_worker,
            generator=torch.Generator(),  # it would draw from torch's own, more or less often with more or less workers
        )
        return self.accelerator.prepare(loader)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        names: list[str] = super().get_decay_parameter_names(model)
        return [name for name in names if not name.endswith(("_token", "position_embeddings"))]


@contextmanager
def errors_of_workers_in_a_line() -> Iterator[None]:
    """What DataLoader says of an error in a worker is a traceback in the error's own message."""
    try:
        yield
    except DeitBatchError as error:
        text = str(error)
        if "Original Traceback" not in text:
            raise
        raise InputError(text.strip().rpartition("\n")[2].partition(": ")[2]) from error
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise DeitBatchError(
            f"{error}; if the machine is short of memory, run the same command again with fewer --workers"
        ) from error


def loss_for(*, multi_label: bool, label_smoothing: float) -> Loss:
    """Cross-entropy with soft targets, or binary cross-entropy for each class where an image may have several."""
    if multi_label:
        return functional.binary_cross_entropy_with_logits
    return lambda logits, targets: functional.cross_entropy(logits, targets, label_smoothing=label_smoothing)


def metrics_for(*, multi_label: bool) -> Callable[[EvalPrediction], dict[str, float]]:
    """Of logits that are not finite there are none: their loss is not finite either, and ends the run."""
    measure = _multi_label_metrics if multi_label else _single_label_metrics

    def metrics(prediction: EvalPrediction) -> dict[str, float]:
        truth, logits = _arrays(prediction)
        if not np.isfinite(logits).all():
            return {}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="sklearn")  # of few images, and of classes without any
            return measure(truth, logits)

    return metrics


def _single_label_metrics(targets: NDArray[np.float32], logits: NDArray[np.float32]) -> dict[str, float]:
    truth, guess = targets.argmax(-1), logits.argmax(-1)
    several = bool(np.ptp(truth))  # of one class alone, nothing is better or worse than chance
    return {
        "accuracy": float(accuracy_score(truth, guess)),
        "balanced_accuracy": float(balanced_accuracy_score(truth, guess)),
        "balanced_accuracy_adjusted": float(several and balanced_accuracy_score(truth, guess, adjusted=True)),
        "f1_macro": float(f1_score(truth, guess, average="macro", zero_division=0)),
        "log_loss": float(log_loss(truth, softmax(logits, -1), labels=range(logits.shape[-1]))),
    }


def _multi_label_metrics(truth: NDArray[np.float32], logits: NDArray[np.float32]) -> dict[str, float]:
    """At a threshold of 0.5, but for the average precision and the log loss; over the classes that are there. Balanced
    accuracy is that of chance where no class tells images apart."""
    has, said = truth > 0.5, logits > 0
    told = has.any(0) & ~has.all(0)  # by these classes alone the ranking of images can be judged
    ranked = told if told.any() else has.any(0)
    by_class = balanced_accuracies(has, said)
    balanced = float(by_class.mean()) if len(by_class) else 0.5
    return {
        "f1_macro": float(f1_score(truth, said, average="macro", zero_division=0)),
        "accuracy": float(accuracy_score(truth, said)),
        "jaccard_samples": jaccard_of_images(has, said),
        "log_loss": log_loss_of_labels(has, expit(logits.astype(np.float64))),
        "average_precision_macro": float(average_precision_score(truth[:, ranked], logits[:, ranked], average="macro")),
        "balanced_accuracy": balanced,
        "balanced_accuracy_adjusted": 2 * balanced - 1,
    }


def _arrays(prediction: EvalPrediction) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    logits = prediction.predictions
    return np.asarray(prediction.label_ids), np.asarray(logits[0] if isinstance(logits, tuple) else logits)


class Diverged(UsageError):  # noqa: N818 - says it all
    """The training came to numbers that are none, as it would again with the same settings."""

    def __init__(self, what: str, step: int) -> None:
        super().__init__(
            f"{what} at step {step:,}: the training has diverged, and nothing is kept of it; give a lower "
            "--learning-rate, or --bf16 for --fp16"
        )


class StopIfDiverged(TrainerCallback):
    """Raises Diverged as soon as a loss, a metric or a weight is seen that is no number: each is looked at whenever it
    is logged, judged or saved."""

    def __init__(self, learner: Learner) -> None:
        self._learner = learner

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any) -> None:
        for name, value in more.get("logs", {}).items():
            if isinstance(value, float) and not math.isfinite(value):
                if name != "grad_norm":  # with --fp16, steps of such a gradient are left out
                    raise Diverged(f"the {name.removeprefix('eval_')} is {value}", state.global_step)
                last: dict[str, Any] = state.log_history[-1]
                last[name] = None  # JSON has no word for such numbers

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        for name, weight in self._learner.student.named_parameters():
            if not weight.isfinite().all():
                raise Diverged(f"{name} is not finite", state.global_step)


class StopAndSave(TrainerCallback):
    """When a signal has come, to whichever process, all of them save after the step in hand and end there."""

    def __init__(self, stop: Stop, processes: Processes) -> None:
        self._stop, self._processes = stop, processes
        self._asked = False

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        ends_epoch = math.isclose(state.epoch or 0, round(state.epoch or 0))
        self._asked = self._processes.any(self._stop.asked)
        control.should_save |= self._asked and not ends_epoch  # there, it is judged and saved anyhow
        return control

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._asked:
            self._processes.wait_for_all()  # the first one writes it
            self._stop.check()
            raise Interrupted(signal.SIGTERM)  # which another process has got


def metrics_of_best(state: TrainerState) -> dict[str, float] | None:
    """What the validation after the best epoch has measured."""
    found = [entry for entry in state.log_history if "eval_loss" in entry and entry["step"] == state.best_global_step]
    return found[-1] if found else None


class EarlyStopping(TrainerCallback):
    """Ends the training after so many epochs without a better one. It is told by the log alone, so that a resumed run
    ends where it would have ended (transformers' own counts anew)."""

    def __init__(self, patience: int, metric: str) -> None:
        self._patience, self._metric = patience, metric

    def is_over(self, state: TrainerState) -> bool:
        values = [entry[name] for entry in state.log_history if (name := f"eval_{self._metric}") in entry]
        if self._metric in LOWER_IS_BETTER:
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
        shown = ", ".join(f"{name} {metrics[f'eval_{name}']:.4f}" for name in METRICS if f"eval_{name}" in metrics)
        epochs = f"epoch {state.epoch or 0:g} of {state.num_train_epochs:g}"
        logger.info("%s, step %s of %s: %s", epochs, f"{state.global_step:,}", f"{state.max_steps:,}", shown)
