"""The whole of a fine-tuning: inputs and a checkpoint in, a folder with the new checkpoint out."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.integrations.integration_utils import get_available_reporting_integrations

from deit_batch import __version__
from deit_batch.errors import UsageError
from deit_batch.finetune import folders, mlflow_model
from deit_batch.finetune.cache import PREPARED
from deit_batch.finetune.card import describe_best, model_card
from deit_batch.finetune.data import Collate, Sets, load_sets
from deit_batch.finetune.inputs import Listing, list_inputs
from deit_batch.finetune.processes import Processes
from deit_batch.finetune.settings import LOWER_IS_BETTER, METRICS, Settings
from deit_batch.finetune.students import finished, make_student
from deit_batch.finetune.teacher import Teacher
from deit_batch.finetune.training import (
    AverageWeights,
    Diverged,
    EarlyStopping,
    EpochTrainer,
    Learner,
    StopAndSave,
    StopIfDiverged,
    TrainingProgress,
    errors_of_workers_in_a_line,
    last_checkpoint,
    loss_for,
    metrics_for,
    metrics_of_best,
)
from deit_batch.input.labels import find_split
from deit_batch.model.checkpoint import Checkpoint, find_checkpoint, find_recipe
from deit_batch.model.classifier import choose_device
from deit_batch.model.labels import digest_of, warn_of_shared_names
from deit_batch.model.recipe import Recipe
from deit_batch.plan import default_workers
from deit_batch.redaction import redact_all
from deit_batch.system import machine
from deit_batch.system.atomic import behind_links
from deit_batch.system.signals import Stop, stop_on_signals

logger = logging.getLogger("deit_batch")

SECONDS_TO_FINISH = 60.0
"""After a signal, for the step in hand and a checkpoint."""


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """`metrics` are those of the best epoch, on the validation images; `skipped` is how many images could not be
    used; `kept` says which epoch that is, if it is known; `is_first`: whether it is this process that
    speaks for all."""

    metrics: dict[str, float]
    skipped: int
    kept: str = ""
    is_first: bool = True


def finetune(settings: Settings, out: Path, *, fresh: bool = False) -> TrainingResult:
    """Trains into the folder `out`: a checkpoint with its image processor, a model card and training.json, the report.
    Where several processes train together, the first one writes it.

    Raises DeitBatchError if it can't go on, Interrupted after a signal; then the same call continues it.
    """
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    out = behind_links(out)
    device = choose_device(settings.device)
    processes = Processes(on_cpu=device.type == "cpu")
    device = processes.device(device)
    with ExitStack() as stack:
        if processes.is_first:
            with folders.beginning(out):
                stack.callback(folders.lock(out).release)
        else:
            stack.enter_context(_silent())
        stop = stack.enter_context(stop_on_signals(SECONDS_TO_FINISH))
        _require_reporters(settings.report_to)
        settings = _with_split(settings)
        checkpoint = find_checkpoint(
            settings.model,
            revision=settings.revision,
            allow_pickle=settings.allow_pickle,
            id2label=settings.id2label,
        )
        warn_of_shared_names(checkpoint.labels, checkpoint.name)
        recipe = _recipe(checkpoint, settings)
        listing = list_inputs(settings)
        facts = _facts(settings, checkpoint, recipe, listing, processes.count)
        report = None
        if processes.is_first:
            with folders.beginning(out):
                report = folders.finished_report(out, facts, fresh=fresh)
        report = processes.agree(report)
        if report:
            logger.info("%s is finished already: nothing to do", out)
        else:
            flavour = mlflow_model.load_flavour() if settings.mlflow else None
            partial = folders.beside(out, ".partial")
            if processes.is_first:
                with folders.beginning(out):
                    folders.open_partial(out, facts, fresh=fresh)
            processes.wait_for_all()
            try:
                run = Run(settings, checkpoint, recipe, listing, partial, device, processes)
                report = {"settings": facts, **_train(run, stop)}
            except Diverged:
                if processes.is_first:
                    folders.remove_partial(out)  # to go on from it would end the same
                raise
            if processes.is_first:
                with folders.writing(out):
                    _publish(report, partial, out, flavour)
            processes.wait_for_all()
    skipped = len(report["data"]["skipped"])
    return TrainingResult(report["metrics"], skipped, describe_best(report.get("best")), processes.is_first)


def _require_reporters(names: Sequence[str]) -> None:
    """Raises UsageError for one whose library is not installed."""
    at_hand = get_available_reporting_integrations()
    for name in names:
        if name not in at_hand:
            raise UsageError(f"--report-to {name}: its library is not installed; pip install {name.replace('_', '-')}")


def _publish(report: dict[str, Any], partial: Path, out: Path, flavour: Any) -> None:
    result = partial / "result"
    text = json.dumps(report, indent=1, allow_nan=False) + "\n"
    (result / folders.REPORT).write_text(text, encoding="utf-8")
    (result / "README.md").write_text(model_card(report), encoding="utf-8")
    if flavour:
        mlflow_model.save(flavour, result, result / "mlflow")
    folders.publish(result, out)


@contextmanager
def _silent() -> Iterator[None]:
    """For all processes but the first, which says it for all."""
    before = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(before)


def _with_split(settings: Settings) -> Settings:
    """Of an input that is divided into folders to train on and to validate with, these for it."""
    split = find_split(settings.input)
    if split is None:
        return settings
    validation = settings.validation or split.validation
    used = f"trains on {split.training}, validates with {validation}"
    logger.info("%s is split into %s: %s", settings.input, ", ".join(split.names), used)
    return replace(settings, input=split.training, validation=validation)


def _recipe(checkpoint: Checkpoint, settings: Settings) -> Recipe:
    """Raises UsageError if the model can't be trained, or not at this size."""
    if checkpoint.exported_dtype:
        raise UsageError(f"{checkpoint.name} is exported; fine-tune the checkpoint that it was made from")
    patch = checkpoint.geometry.patch_size
    recipe = find_recipe(checkpoint, settings.image_processor)
    if recipe.processor:
        raise UsageError("training can't follow an image processor of this type; give another --image-processor")
    size = settings.image_size
    if size is None:
        return recipe
    if len(set(recipe.size)) > 1:
        height, width = recipe.size
        raise UsageError(f"--image-size is for models that take squares; {checkpoint.name} takes {height}x{width}")
    if size % patch:
        raise UsageError(f"--image-size {size} is no multiple of the model's patches, {patch}")
    return recipe.scaled(size)


def _facts(
    settings: Settings, checkpoint: Checkpoint, recipe: Recipe, listing: Listing | None, processes: int
) -> dict[str, Any]:
    """All that the result depends on, as it is written beside it: without what gives access."""
    facts = asdict(settings) | {
        "checkpoint_sha256": checkpoint.digest,
        "preprocessing": recipe.as_dict(),
        "what_is_in_the_inputs": listing and listing.digest,
        "processes": processes,
    }
    facts["id2label"] = digest_of(checkpoint.labels) if settings.id2label else None
    for no_part_of_it in ("recipe", "workers", "pixel_cache", "report_to"):
        del facts[no_part_of_it]
    return dict(json.loads(json.dumps(redact_all(facts))))


@dataclass(frozen=True, slots=True)
class Run:
    """What is trained, and on what. `partial`: the folder to work in."""

    settings: Settings
    checkpoint: Checkpoint
    recipe: Recipe
    listing: Listing | None
    partial: Path
    device: torch.device
    processes: Processes


def _train(run: Run, stop: Stop) -> dict[str, Any]:
    """Leaves the checkpoint in `partial`/result, and returns what there is to report."""
    start = time.monotonic()
    settings, recipe, partial = run.settings, run.recipe, run.partial
    every_core = default_workers(run.device) if settings.workers is None else settings.workers
    begun = any(partial.glob(f"*/{PREPARED}"))
    with run.processes.first_goes_first():
        sets = load_sets(settings, recipe, partial, stop, workers=every_core, listing=run.listing)
    teacher = Teacher(settings.teacher, sets.class_names, run.device) if settings.teacher else None
    student = make_student(
        run.checkpoint, settings, sets.class_names, multi_label=sets.multi_label, image_size=recipe.size
    )
    loss = loss_for(multi_label=sets.multi_label, label_smoothing=settings.label_smoothing_factor)
    learner = Learner(student, recipe, loss, settings, teacher)
    arguments = _arguments(run, sets, workers_of_each(settings, run.device, run.processes))
    last = run.processes.agree(last_checkpoint(partial / "steps"))
    _say_where_it_goes_on(last, begun=begun)
    trainer = EpochTrainer(
        learner,
        arguments,
        Collate(settings),
        sets.training,
        sets.validation,
        compute_metrics=metrics_for(multi_label=sets.multi_label),
        callbacks=_callbacks(run, learner, arguments, stop, last),
    )
    trainer.repeats = settings.repeated_augmentation
    trainer.remove_callback(transformers.PrinterCallback)
    with errors_of_workers_in_a_line():
        trainer.train(resume_from_checkpoint=last)
    trainer.remove_callback(TrainingProgress)  # what follows is of no further epoch
    best = metrics_of_best(trainer.state)  # of the best epoch, whose weights have been loaded
    metrics = best or trainer.evaluate()
    if run.processes.is_first:
        finished(learner.result).save_pretrained(partial / "result")
        config = json.dumps(recipe.as_config(), indent=1) + "\n"
        (partial / "result" / "preprocessor_config.json").write_text(config, encoding="utf-8")
    return {
        "metrics": {name.removeprefix("eval_"): value for name, value in metrics.items() if _is_metric(name)},
        "best": best and {"metric": arguments.metric_for_best_model, "epoch": best["epoch"], "step": best["step"]},
        "history": trainer.state.log_history,
        "steps": trainer.state.global_step,
        "training": _as_it_was(run, sets),
        "data": _described(sets),
        "trained_from": {
            "name": run.checkpoint.name,
            "commit": run.checkpoint.commit,
            "sha256": run.checkpoint.digest,
        },
        "seconds": round(time.monotonic() - start, 1),
        "machine": machine.describe(),
        "versions": {"deit-batch": __version__} | {name: version(name) for name in ("torch", "transformers", "pillow")},
    }


def workers_of_each(settings: Settings, device: torch.device, processes: Processes) -> int:
    """By default, the processes of a machine share its cores."""
    if settings.workers is not None:
        return settings.workers
    return default_workers(device, max(1, machine.cores() // processes.here))


def _say_where_it_goes_on(last: str | None, *, begun: bool) -> None:
    """`last`: the Trainer's checkpoint that is gone on from; `begun`: whether a run before this one has left images."""
    if last:
        state = transformers.TrainerState.load_from_json(str(Path(last) / "trainer_state.json"))
        step, steps = f"{state.global_step:,}", f"{state.max_steps:,}"
        logger.info("going on from step %s of %s, epoch %.4g of %g", step, steps, state.epoch, state.num_train_epochs)
    elif begun:
        logger.info("going on with the images of an earlier run, which has saved no step: training starts at the first")


def _as_it_was(run: Run, sets: Sets) -> dict[str, Any]:
    """What the settings came to: those that were left to the data and the device, too."""
    images, count = len(sets.training), run.processes.count
    arguments = run.settings.arguments(images, count)
    return {
        "recipe": run.settings.recipe,
        **{name: arguments[name] for name in ("num_train_epochs", "per_device_train_batch_size", "learning_rate")},
        "images_in_a_step": run.settings.step_size(images, count),
        "processes": count,
        "bf16": _takes_bf16(run),
    }


def _takes_bf16(run: Run) -> bool:
    """If it is not said: where the card does (as it can emulate it elsewhere, which is slow)."""
    if run.settings.bf16 is not None:
        return run.settings.bf16
    return (
        run.device.type == "cuda" and not run.settings.fp16 and torch.cuda.is_bf16_supported(including_emulation=False)
    )


def _callbacks(
    run: Run, learner: Learner, arguments: transformers.TrainingArguments, stop: Stop, last: str | None
) -> list[transformers.TrainerCallback]:
    """`last`: the Trainer's checkpoint that is gone on from. If that run died after its last step, there is no further
    one in `arguments`."""
    callbacks = [AverageWeights(learner), StopIfDiverged(learner), StopAndSave(stop, run.processes), TrainingProgress()]
    if run.settings.early_stopping_patience:
        early = EarlyStopping(run.settings.early_stopping_patience, str(arguments.metric_for_best_model))
        callbacks.append(early)
        state = transformers.TrainerState.load_from_json(str(Path(last) / "trainer_state.json")) if last else None
        if state and early.is_over(state):
            arguments.max_steps = state.global_step
    return callbacks


def _described(sets: Sets) -> dict[str, Any]:
    return {
        "images": {"training": len(sets.training), "validation": len(sets.validation)},
        "class_names": sets.class_names,
        "multi_label": sets.multi_label,
        "layouts": sets.layouts,
        "fingerprints": sets.fingerprints,
        "skipped": [asdict(one) for one in sets.skipped],
        "copies": asdict(sets.copies),
        "trained_on_and_validated_with": asdict(sets.in_both),
    }


def _is_metric(name: str) -> bool:
    return name.startswith("eval_") and name.removeprefix("eval_") in METRICS


def _arguments(run: Run, sets: Sets, workers: int) -> transformers.TrainingArguments:
    best = run.settings.best_metric(multi_label=sets.multi_label)
    on_cpu = run.device.type == "cpu"
    return transformers.TrainingArguments(
        output_dir=str(run.partial / "steps"),
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model=best,
        greater_is_better=best not in LOWER_IS_BETTER,
        logging_steps=20,
        logging_nan_inf_filter=False,  # it would hide from StopIfDiverged what it is for
        disable_tqdm=True,  # it would write its logs to stdout
        report_to=list(run.settings.report_to) or "none",
        remove_unused_columns=False,
        label_names=["targets"],
        use_cpu=on_cpu,
        dataloader_pin_memory=not on_cpu,
        dataloader_num_workers=workers,
        dataloader_persistent_workers=workers > 0,
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,
        bf16=_takes_bf16(run),
        **run.settings.arguments(len(sets.training), run.processes.count),
    )
