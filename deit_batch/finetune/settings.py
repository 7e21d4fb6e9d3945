"""What a fine-tuning is asked for. The knobs of training have the names of transformers' TrainingArguments."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from deit_batch.errors import UsageError
from deit_batch.limits import DEFAULT_LIMITS, Limits
from deit_batch.model.checkpoint import DEFAULT_MODEL

STEPS_WANTED = 2000
FEWEST_EPOCHS = 3
LARGEST_BATCH = 32
BATCHES_AN_EPOCH = 8
"""At least, as long as a batch has four images."""
SINGLE_LABEL_METRICS = ("accuracy", "balanced_accuracy", "balanced_accuracy_adjusted", "f1_macro", "log_loss", "loss")
MULTI_LABEL_METRICS = (
    "average_precision_macro", "accuracy", "f1_macro", "jaccard_samples", "balanced_accuracy",
    "balanced_accuracy_adjusted", "log_loss", "loss",
)  # fmt: skip
"""What a validation measures; the best epoch is chosen by the first, if by no other."""
METRICS = tuple(dict.fromkeys(SINGLE_LABEL_METRICS + MULTI_LABEL_METRICS))
LOWER_IS_BETTER = ("log_loss", "loss")
REPORTERS = ("clearml", "codecarbon", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb")
"""Of those that the Trainer of `transformers` has, what needs no more than its library."""
LEARNING_RATES = {"full": 5e-5, "lora": 5e-4, "head": 1e-3}
"""For AdamW: what is trained anew bears larger steps than what is only refined."""
BATCH_OF_THE_RATE = 512
"""With `scale_learning_rate`, the rate for a step of so many images is what was set (arXiv 2012.12877, section 6)."""
DISTILLATION_ALPHAS = {"hard": 0.5, "soft": 0.1}
"""The teacher's share of the loss: arXiv 2012.12877, equation 3, and the λ of section 6.1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """`recipe` is where the values come from that were not given; `validation_share` is of the inputs, where no
    `validation` is given; `warmup_steps` below 1 are a share of all steps; None is a default that depends on the data,
    the checkpoint or the device."""

    input: str
    recipe: str = "finetune"
    column: str | None = None
    label_column: str | None = None
    label_map: str | None = None
    recursive: bool = True
    limit: int | None = None
    map: tuple[tuple[str, str], ...] = ()
    base: str | None = None
    suffix: str | None = None
    delimiter: str | None = None
    validation: str | None = None
    validation_share: float = 0.2
    model: str = DEFAULT_MODEL
    revision: str | None = None
    image_processor: str | None = None
    allow_pickle: bool = False
    id2label: str | None = None
    image_size: int | None = None
    from_scratch: bool = False
    freeze_backbone: bool = False
    lora_rank: int | None = None
    teacher: str | None = None
    distillation_type: str = "hard"
    distillation_alpha: float | None = None
    distillation_tau: float = 3.0
    mlflow: bool = False
    report_to: tuple[str, ...] = ()
    device: str = "auto"
    num_train_epochs: float | None = None
    max_steps: int | None = None
    per_device_train_batch_size: int | None = None
    train_batch_size: int | None = None
    auto_find_batch_size: bool = False
    learning_rate: float | None = None
    scale_learning_rate: bool = False
    min_learning_rate: float = 0.0
    lr_scheduler_type: str = "cosine"
    warmup_steps: float = 0.05
    weight_decay: float = 0.05
    label_smoothing_factor: float = 0.1
    dropout: float | None = None
    drop_path: float = 0.0
    ema_decay: float | None = None
    gradient_accumulation_steps: int = 1
    max_grad_norm: float = 1.0
    fp16: bool = False
    bf16: bool | None = None
    early_stopping_patience: int | None = None
    metric_for_best_model: str | None = None
    seed: int = 0
    crop: float = 0.6
    flip: bool = True
    repeated_augmentation: int = 1
    randaugment: float = 0.0
    color_jitter: float = 0.0
    random_erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    mixup_switch_prob: float = 0.5
    pixel_cache: str | None = None
    workers: int | None = None
    limits: Limits = DEFAULT_LIMITS

    def __post_init__(self) -> None:
        """Raises UsageError for what contradicts itself."""
        if self.freeze_backbone and self.lora_rank:
            raise UsageError("--freeze-backbone and --lora-rank exclude each other: the one trains the head alone")
        if self.teacher and self.way != "full":
            raise UsageError("--teacher trains a distillation token, so all weights: leave out the other of the two")
        if self.fp16 and self.bf16:
            raise UsageError("--fp16 and --bf16 exclude each other")
        if self.from_scratch and self.way != "full":
            raise UsageError("--from-scratch trains all weights: leave out --freeze-backbone and --lora-rank")
        if self.min_learning_rate and self.lr_scheduler_type != "cosine":
            raise UsageError("--min-learning-rate is for --lr-scheduler-type cosine")

    @property
    def way(self) -> str:
        return "head" if self.freeze_backbone else "lora" if self.lora_rank else "full"

    def best_metric(self, *, multi_label: bool) -> str:
        """The one by which the best epoch is chosen. Raises UsageError if there is no such one of labels like these."""
        metrics = MULTI_LABEL_METRICS if multi_label else SINGLE_LABEL_METRICS
        chosen = self.metric_for_best_model or metrics[0]
        if chosen not in metrics:
            kind = "any number of labels" if multi_label else "one label"
            raise UsageError(
                f"--metric-for-best-model {chosen} is not measured where an image has {kind}; {', '.join(metrics)} are"
            )
        return chosen

    @property
    def teachers_share(self) -> float:
        """Of the loss."""
        alpha = self.distillation_alpha
        return DISTILLATION_ALPHAS[self.distillation_type] if alpha is None else alpha

    def batch_size(self, images: int, processes: int = 1) -> int:
        """Of each of the processes, in one pass."""
        if self.per_device_train_batch_size:
            return self.per_device_train_batch_size
        if self.train_batch_size:
            return max(1, self.train_batch_size // (processes * self.gradient_accumulation_steps))
        return min(LARGEST_BATCH, max(4, images // (BATCHES_AN_EPOCH * processes)))

    def step_size(self, images: int, processes: int = 1) -> int:
        """Images in a step, of all processes together."""
        return self.batch_size(images, processes) * processes * self.gradient_accumulation_steps

    def epochs(self, images: int, processes: int = 1) -> float:
        """Enough for a certain number of steps, whether there are a hundred images or a hundred thousand."""
        if self.num_train_epochs:
            return self.num_train_epochs
        steps = max(1, math.ceil(images / self.step_size(images, processes)))
        return max(FEWEST_EPOCHS, math.ceil(STEPS_WANTED / steps))

    def peak_learning_rate(self, images: int, processes: int = 1) -> float:
        rate = self.learning_rate or LEARNING_RATES[self.way]
        return rate * self.step_size(images, processes) / BATCH_OF_THE_RATE if self.scale_learning_rate else rate

    def arguments(self, images: int, processes: int = 1) -> dict[str, Any]:
        """For TrainingArguments, with `images` to train on."""
        size = self.batch_size(images, processes)
        least = self.min_learning_rate
        return {
            "num_train_epochs": self.epochs(images, processes),
            "max_steps": self.max_steps or -1,
            "per_device_train_batch_size": size,
            "per_device_eval_batch_size": size,
            "auto_find_batch_size": self.auto_find_batch_size,
            "learning_rate": self.peak_learning_rate(images, processes),
            "lr_scheduler_type": "cosine_with_min_lr" if least else self.lr_scheduler_type,
            "lr_scheduler_kwargs": {"min_lr": least} if least else {},
            "warmup_steps": self.warmup_steps,
            "weight_decay": self.weight_decay,
            "gradient_accumulation_steps": self.gradient_accumulation_steps,
            "max_grad_norm": self.max_grad_norm,
            "fp16": self.fp16,
            "seed": self.seed,
        }
