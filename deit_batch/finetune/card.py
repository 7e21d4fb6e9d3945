"""The model card of a fine-tuned checkpoint: what it was made from, on what data, and how well it does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deit_batch.escaping import escape_controls

SHOWN = 200  # characters of a long list


def describe_best(best: Mapping[str, Any] | None) -> str:
    """Which epoch's weights are kept, and why; nothing if an earlier version has not said it."""
    return f"epoch {best['epoch']:.4g}, the best by {best['metric']}" if best else ""


def model_card(report: Mapping[str, Any]) -> str:
    """Markdown, with the metadata that the Hub reads at its top. `report` is training.json's."""
    data, settings, base = report["data"], report["settings"], report["trained_from"]
    images, names = data["images"], escape_controls(", ".join(data["class_names"]))
    kind = "any number of labels an image" if data["multi_label"] else "one label an image"
    commit = f" at {base['commit']}" if base["commit"] else ""
    metrics = "\n".join(f"| {name} | {value:.4f} |" for name, value in sorted(report["metrics"].items()))
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    base_model = f"base_model: {base['name']}\n" if base["commit"] else ""
    skipped = f", {len(data['skipped'])} skipped" if data["skipped"] else ""
    teacher = f", with {settings['teacher']} as its teacher" if settings["teacher"] else ""
    return f"""---
library_name: transformers
pipeline_tag: image-classification
{base_model}---
# A DeiT that knows {len(data["class_names"])} classes

{names if len(names) <= SHOWN else names[:SHOWN] + " …"}: {kind}.

Made by `deit-batch finetune` from {base["name"]}{commit}{teacher}.

| on the validation images | |
| --- | ---: |
{metrics}

| | |
| --- | --- |
| Images | {images["training"]:,} to train on, {images["validation"]:,} to validate with{skipped} |
| Labels from | {"; ".join(data["layouts"])} |
| Fingerprint of the data (SHA-256 over images and labels) | {", ".join(data["fingerprints"])} |
| Trained | {_way(settings)}, {report["steps"]:,} steps, {report["seconds"]:,.0f} s on {report["machine"]} |
| Kept | {describe_best(report.get("best")) or "the last step"}; the metrics above are its own |
| Versions | {versions} |

Everything else that was set, and how the loss went, is in `training.json`.
"""


def _way(settings: Mapping[str, Any]) -> str:
    if settings["freeze_backbone"]:
        return "the head alone"
    return f"by LoRA of rank {settings['lora_rank']}" if settings["lora_rank"] else "whole"
