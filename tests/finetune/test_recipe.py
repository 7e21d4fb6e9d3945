"""Table 9 of DeiT's paper, row by row, and what outranks a recipe."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from click import BadParameter, Context
from helpers import MakeCheckpoint
from torch.nn import functional
from torch.utils.data import Dataset, default_collate
from transformers import TrainingArguments, get_scheduler

from deit_batch.cli import main
from deit_batch.errors import UsageError
from deit_batch.finetune.recipes import DEIT, IN_A_RECIPE, RECIPES
from deit_batch.finetune.sampling import Draw
from deit_batch.finetune.settings import Settings
from deit_batch.finetune.stochastic_depth import add_stochastic_depth, drop
from deit_batch.finetune.students import make_student
from deit_batch.finetune.training import EpochTrainer, Learner, distillation_loss, loss_for
from deit_batch.model.checkpoint import find_checkpoint
from deit_batch.model.recipe import CARD_RECIPE

IMAGES = 1_281_167
"""To train on, in ImageNet-1k."""


def chosen(*arguments: str, config: Path | None = None) -> dict[str, Any]:
    """The parameters of the command."""
    context = Context(main, **main.context_settings)
    given = ["--input", "x", "--out", "y", *arguments]
    return dict(main.commands["finetune"].make_context("finetune", given, context).params)


def settings(*arguments: str) -> Settings:
    params = chosen(*arguments)
    return Settings(**{name: params[name] for name in params if name in Settings.__dataclass_fields__})


TABLE_9 = {
    "Epochs 300": ("num_train_epochs", 300),
    "Batch size 1024": ("train_batch_size", 1024),
    "Learning rate 0.0005 x batch size / 512": ("learning_rate", 0.0005),
    "Learning rate decay cosine": ("lr_scheduler_type", "cosine"),
    "Weight decay 0.05": ("weight_decay", 0.05),
    "Label smoothing 0.1": ("label_smoothing_factor", 0.1),
    "Dropout no": ("dropout", 0),
    "Stochastic depth 0.1": ("drop_path", 0.1),
    "Repeated augmentation yes": ("repeated_augmentation", 3),
    "Gradient clipping no": ("max_grad_norm", 0),
    "RandAugment 9/0.5": ("randaugment", 9),
    "Mixup 0.8": ("mixup", 0.8),
    "CutMix 1.0": ("cutmix", 1.0),
    "Erasing 0.25": ("random_erasing", 0.25),
}


@pytest.mark.parametrize("row", TABLE_9)
def test_the_rows_of_table_9(row: str) -> None:
    name, value = TABLE_9[row]
    assert getattr(settings("--recipe", "deit"), name) == value
    assert DEIT[name] == value


def test_what_table_9_does_not_have_is_off() -> None:
    deit = settings("--recipe", "deit")
    assert (deit.ema_decay, deit.color_jitter, deit.teacher, deit.early_stopping_patience) == (None, 0, None, None)
    assert (deit.crop, deit.flip, deit.mixup_switch_prob) == (0.08, True, 0.5)


@pytest.mark.parametrize("processes", [1, 8])
def test_the_steps_of_table_9_on_imagenet(processes: int) -> None:
    """Five epochs of 300 for warm-up, 1,024 images a step, a rate of 0.001 at its peak and of 0.00001 at the end."""
    arguments = settings("--recipe", "deit").arguments(IMAGES, processes)
    assert arguments["per_device_train_batch_size"] * processes == 1024
    steps_an_epoch = -(-IMAGES // 1024)
    steps = 300 * steps_an_epoch
    warmup = round(arguments["warmup_steps"] * steps)
    assert warmup == 5 * steps_an_epoch
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], arguments["learning_rate"])
    schedule = get_scheduler(
        arguments["lr_scheduler_type"],
        optimizer,
        num_warmup_steps=warmup,
        num_training_steps=steps,
        scheduler_specific_kwargs=arguments["lr_scheduler_kwargs"],
    )
    rate = schedule.lr_lambdas[0]
    peak = arguments["learning_rate"]
    assert peak == pytest.approx(0.001)
    assert peak * rate(warmup) == pytest.approx(0.001)
    assert peak * rate((warmup + steps) // 2) == pytest.approx((0.001 + 0.00001) / 2, rel=1e-3)
    assert peak * rate(steps) == pytest.approx(0.00001)


def test_the_learning_rate_is_scaled_with_all_images_of_a_step() -> None:
    deit = ("--recipe", "deit", "--per-device-train-batch-size", "32", "--gradient-accumulation-steps", "2")
    assert settings(*deit).peak_learning_rate(10_000, processes=4) == pytest.approx(0.0005 * 256 / 512)
    assert settings(*deit, "--no-scale-learning-rate").peak_learning_rate(10_000, processes=4) == 0.0005
    assert Settings(input="").peak_learning_rate(10_000) == 5e-5


def test_there_are_at_least_2000_steps_and_3_epochs() -> None:
    for images in (10, 90, 1000, 5000, 1_000_000):
        plain = Settings(input="")
        steps = plain.epochs(images) * -(-images // plain.batch_size(images))
        assert steps >= 2000
        assert plain.epochs(images) >= 3


def test_an_option_outranks_a_config_and_a_config_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("drop-path = 0.2\nmixup = 0.3")
    for order in (["--recipe", "deit", "--config"], ["--config"]):
        given = [*order, str(tmp_path / "c.toml"), *([] if "--recipe" in order else ["--recipe", "deit"])]
        found = settings(*given, "--mixup", "0.4", "--no-flip")
        assert (found.drop_path, found.mixup, found.flip, found.cutmix, found.recipe) == (0.2, 0.4, False, 1.0, "deit")
    (tmp_path / "r.toml").write_text('recipe = "deit"\nmixup = 0.1')
    found = settings("--config", str(tmp_path / "r.toml"))
    assert (found.mixup, found.cutmix) == (0.1, 1.0)


def test_a_recipe_of_ones_own(tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text("learning-rate = 1e-3\nrandaugment = 5\nflip = false")
    found = settings("--recipe", str(mine), "--randaugment", "6")
    assert (found.learning_rate, found.randaugment, found.flip, found.recipe) == (0.001, 6, False, str(mine))
    mine.write_text('model = "demo"')
    with pytest.raises(BadParameter, match="there is no option model"):
        settings("--recipe", str(mine))
    with pytest.raises(BadParameter, match=r"there is no file dite, and the recipes are finetune, deit"):
        settings("--recipe", "dite")


def test_recipes_set_what_there_is() -> None:
    fields = Settings.__dataclass_fields__
    assert set(fields) >= IN_A_RECIPE
    assert settings() == Settings(input="x")
    assert all(set(values) <= IN_A_RECIPE for values in RECIPES.values())


def test_settings_that_do_not_go_together() -> None:
    with pytest.raises(UsageError, match="--from-scratch trains all weights"):
        Settings(input="", from_scratch=True, lora_rank=4)
    with pytest.raises(UsageError, match="--min-learning-rate is for --lr-scheduler-type cosine"):
        Settings(input="", min_learning_rate=1e-5, lr_scheduler_type="linear")


def student_of(folder: Path, **more: Any) -> Any:
    checkpoint = find_checkpoint(str(folder))
    asked = Settings(input="", model=str(folder), **more)
    return make_student(checkpoint, asked, checkpoint.labels, multi_label=False, image_size=(32, 32))


def test_stochastic_depth_leaves_out_branches_of_single_images_and_keeps_their_mean() -> None:
    torch.manual_seed(0)
    values = torch.ones(4000, 3, 2)
    dropped = drop(values, 0.25)
    assert sorted(dropped.unique().tolist()) == pytest.approx([0, 4 / 3])
    assert (dropped == dropped[:, :1, :1]).all()
    assert float(dropped.mean()) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("architecture", ["ViTForImageClassification", "DeiTForImageClassification"])
def test_stochastic_depth_of_a_model(make_checkpoint: MakeCheckpoint, architecture: str) -> None:
    """Not in evaluation; in training for each branch, more in later layers; and the weights keep their names."""
    folder = make_checkpoint(architecture, num_hidden_layers=3)
    plain, dropping = student_of(folder), student_of(folder, drop_path=0.5)
    assert list(plain.state_dict()) == list(dropping.state_dict())
    pixels = torch.randn(1, 3, 32, 32).expand(400, 3, 32, 32)
    with torch.inference_mode():
        expected = plain.eval()(pixel_values=pixels[:2]).logits
        assert torch.equal(dropping.eval()(pixel_values=pixels[:2]).logits, expected)
        torch.manual_seed(0)
        logits = dropping.train()(pixel_values=pixels).logits
    # Of the second layer a quarter is left out, of the third a half: 2 x 2 branches, so 16 results.
    assert len(torch.unique(logits.round(decimals=3), dim=0)) == 16
    sure = copy.deepcopy(student_of(folder))
    add_stochastic_depth(sure, 0.999)
    assert not torch.equal(sure.train()(pixel_values=pixels[:2]).logits, expected)


def test_from_scratch_no_weight_is_the_checkpoints(make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint("DeiTForImageClassification", initializer_range=0.02)
    before = dict(student_of(folder).named_parameters())
    torch.nn.init.zeros_(before["deit.embeddings.cls_token"])
    blank = dict(student_of(folder, from_scratch=True, dropout=0.0, seed=5).named_parameters())
    for name, weight in blank.items():
        if "bias" not in name and "layernorm" not in name:
            assert not torch.equal(weight, before[name]), name
            assert float(weight.detach().std()) == pytest.approx(0.02, rel=0.4), name


def learner(folder: Path, **more: Any) -> Learner:
    asked = Settings(input="", model=str(folder), **more)
    loss = loss_for(multi_label=False, label_smoothing=asked.label_smoothing_factor)
    return Learner(student_of(folder, **more), CARD_RECIPE, loss, asked)


def test_the_average_of_the_weights_is_exponential_and_is_what_is_validated(make_checkpoint: MakeCheckpoint) -> None:
    model = learner(make_checkpoint(), ema_decay=0.9)
    assert model.average is not None
    weight: Any
    average: Any
    weight, average = (one.get_submodule("classifier").bias for one in (model.student, model.average.module))
    expected = 0.0
    for step, value in enumerate([1.0, 2.0, 4.0]):
        with torch.no_grad():
            weight.fill_(value)
        model.average.update_parameters(model.student)
        expected = value if step == 0 else 0.9 * expected + 0.1 * value
        assert torch.allclose(average, torch.tensor(expected))
    assert not any(one.requires_grad for one in model.average.parameters())
    pixels = torch.randint(0, 255, (2, 32, 32, 3), dtype=torch.uint8)
    targets = torch.eye(5)[:2]
    with torch.no_grad():
        validated = model.eval()(pixels, targets)["logits"]
        weight.fill_(100.0)
        assert torch.equal(model(pixels, targets)["logits"], validated)
        assert not torch.equal(model.train()(pixels, targets)["logits"], validated)
    assert model.result is model.average.module


class FewExamples(Dataset[dict[str, torch.Tensor]]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, draw: Draw) -> dict[str, torch.Tensor]:
        return {"pixels": torch.zeros(32, 32, 3, dtype=torch.uint8), "targets": torch.eye(5)[draw.image]}


def trainer_of(folder: Path, out: Path, **more: Any) -> EpochTrainer:
    """Of a single step."""
    arguments = TrainingArguments(
        output_dir=str(out),
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        save_strategy="no",
        **Settings(input="", max_steps=1, **more).arguments(4),
    )
    return EpochTrainer(learner(folder, **more), arguments, default_collate, FewExamples())


def test_adamw_spares_what_deits_own_optimizer_spares(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    """Vectors, the tokens and the positions have no weight decay (timm's param_groups_weight_decay, and no_weight_decay
    in the authors' models.py)."""
    trainer = trainer_of(make_checkpoint("DeiTForImageClassificationWithTeacher"), tmp_path)
    optimizer = trainer.create_optimizer()
    assert isinstance(optimizer, torch.optim.AdamW)
    decays = {id(weight): group["weight_decay"] for group in optimizer.param_groups for weight in group["params"]}
    names = ("cls_token", "distillation_token", "position_embeddings")
    assert trainer.model is not None
    for name, weight in trainer.model.named_parameters():
        spared = weight.ndim == 1 or name.endswith(names)
        assert decays[id(weight)] == (0 if spared else 0.05), name


def test_gradients_are_clipped_unless_the_recipe_says_no(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for asked, limit in ((DEIT["max_grad_norm"], math.inf), (1.0, 1.0)):
        trainer = trainer_of(make_checkpoint(), tmp_path, max_grad_norm=asked)
        limits: list[float] = []
        monkeypatch.setattr(trainer.accelerator, "clip_grad_norm_", lambda _, most, limits=limits: limits.append(most))
        trainer.train()
        assert min(limits) == limit


def test_dropout_is_what_is_asked_for_or_the_checkpoints(make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint("DeiTForImageClassification", hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.3)
    pixels = torch.randn(1, 3, 32, 32)
    for asked, varies in ((DEIT["dropout"], False), (None, True)):
        student = student_of(folder, dropout=asked).train()
        with torch.inference_mode():
            assert torch.equal(student(pixel_values=pixels).logits, student(pixel_values=pixels).logits) != varies


def test_soft_and_hard_distillation_are_the_papers_equations() -> None:
    torch.manual_seed(0)
    ours, theirs = torch.randn(6, 5), torch.randn(6, 5)
    label = theirs.argmax(-1)
    hard = -functional.softmax(ours, -1).log()[torch.arange(6), label].mean()
    assert torch.allclose(distillation_loss(ours, theirs, None), hard)
    for tau in (1.0, 3.0):
        p, q = (functional.softmax(one / tau, -1) for one in (theirs, ours))
        divergence = (p * (p / q).log()).sum(-1).mean()
        assert torch.allclose(distillation_loss(ours, theirs, tau), tau**2 * divergence, atol=1e-6)


@pytest.mark.parametrize(("kind", "share"), [("hard", 0.5), ("soft", 0.1)])
def test_the_shares_of_teacher_and_truth(make_checkpoint: MakeCheckpoint, kind: str, share: float) -> None:
    folder = make_checkpoint("DeiTForImageClassificationWithTeacher")
    taught = torch.randn(2, 5)
    asked = Settings(input="", model=str(folder), teacher="t", distillation_type=kind)
    student = make_student(
        find_checkpoint(str(folder)), asked, find_checkpoint(str(folder)).labels, multi_label=False, image_size=(32, 32)
    )
    teacher: Any = lambda values: taught  # noqa: E731
    model = Learner(student, CARD_RECIPE, loss_for(multi_label=False, label_smoothing=0.1), asked, teacher)
    pixels, targets = torch.randint(0, 255, (2, 32, 32, 3), dtype=torch.uint8), torch.eye(5)[:2]
    found = model.train()(pixels, targets)["loss"]
    outputs = student(pixel_values=pixels.permute(0, 3, 1, 2) / 127.5 - 1)
    truth = functional.cross_entropy(outputs.cls_logits, targets, label_smoothing=0.1)
    told = distillation_loss(outputs.distillation_logits, taught, None if kind == "hard" else 3.0)
    assert torch.allclose(found, (1 - share) * truth + share * told, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("iou", "jaccard_samples"),
        ("norm_macro_recall", "balanced_accuracy_adjusted"),
        ("average_precision", "average_precision_macro"),
    ],
)
def test_the_best_epoch_is_chosen_by_the_cards_names_too(name: str, ours: str) -> None:
    assert settings("--metric-for-best-model", name).metric_for_best_model == ours
