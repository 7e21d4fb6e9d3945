"""A page as one file of HTML: a template, with its style, its script and its data in it, and a policy by which it may
ask nobody for anything more."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from deit_batch import __version__
from deit_batch.io import counted

SEPARATORS = r"/\\_.\-"
"""Between the words of a file's name; the script has the same, in `breakable`."""


def render(template: str, **context: Any) -> bytes:
    """The page that a template makes of its context, whose texts stay text, whatever is in them."""
    style, script = _asset("page.css"), _asset("page.js")
    policy = {
        "default-src": "'none'",
        "style-src": _digest(style),
        "script-src": _digest(script),
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    page = (
        _environment()
        .get_template(template)
        .render(
            **context,
            style=Markup(style),  # noqa: S704 - our own files
            script=Markup(script),  # noqa: S704
            policy="; ".join(f"{what} {source}" for what, source in policy.items()),
            version=__version__,
        )
    )
    return page.encode("utf-8", "replace")  # half a surrogate pair, out of a JSON escape


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader(str(__package__), "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # The filter `tojson` escapes what could end the script element that it stands in.
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "allow_nan": False, "separators": (",", ":")}
    environment.filters |= {
        "number": "{:,}".format,
        "short": _short,
        "counted": counted,
        "score": "{:.4f}".format,
        "percent": _percent,
        "breakable": _breakable,
    }
    return environment


def _asset(name: str) -> str:
    return (files(__package__) / name).read_text("utf-8")


def _digest(text: str) -> str:
    """As a Content-Security-Policy names what it allows: https://www.w3.org/TR/CSP3/#grammardef-hash-source"""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _short(number: int) -> str:
    """In at most five characters, for where there is no room: 1,234 and 12k and 3M."""
    for size, unit in ((10**6, "M"), (10**4, "k")):
        if number >= size:
            return f"{number // (10**6 if unit == 'M' else 1000):,}{unit}"
    return f"{number:,}"


def _breakable(name: str) -> Markup:
    """A name of a file with places at which a line may end, so that no word of it need be broken."""
    return Markup("<wbr>").join(re.findall(rf"[^{SEPARATORS}]*[{SEPARATORS}]+|[^{SEPARATORS}]+", name))


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


SETTINGS_IN_WORDS = ("model", "commit", "checkpoint_sha256", "recipe", "device", "dtype", "runtime")
"""What `settings_of` says."""


def settings_of(run: Mapping[str, Any]) -> dict[str, str]:
    """What of a run's settings its scores depend on, in words."""
    settings = run["settings"]
    runtime = f", by {settings['runtime']}" if settings.get("runtime") in ("transformers", "onnx") else ""
    commit = settings.get("commit") or ""
    return {
        "Model": f"{settings.get('model')}{f' at {commit[:12]}' if commit else ''}",
        "Weights": f"SHA-256 {str(settings.get('checkpoint_sha256'))[:12]}…",
        "Recipe": recipe_in_words(settings.get("recipe") or {}),
        "Computed": f"{settings.get('dtype')} on {settings.get('device')}{runtime}",
    }


def recipe_in_words(recipe: Mapping[str, Any]) -> str:
    resize, processor = recipe.get("resize"), recipe.get("processor")
    if isinstance(processor, Mapping):
        return f"{processor.get('image_processor_type')} of transformers, to {_sides(resize)}"
    size = f"short side {resize}" if isinstance(resize, int) else _sides(resize)
    filters = {0: "nearest", 1: "Lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "Hamming"}
    parts = [
        f"resized to {size}, {filters.get(recipe.get('resample', -1), '?')}" if resize else "not resized",
        f"centre {_sides(recipe['crop'])}" if recipe.get("crop") else "",
        f"mean {_channels(recipe.get('mean'))}, deviation {_channels(recipe.get('std'))}",
        "decoded fast" if recipe.get("fast") else "",
        "deep grey scaled to 8 bits" if recipe.get("scale_deep_gray") else "",
    ]
    return "; ".join(filter(None, parts))


def _sides(size: Any) -> str:
    return "×".join(map(str, size)) if isinstance(size, list) else str(size)


def _channels(values: Any) -> str:
    return " ".join(f"{value:g}" for value in dict.fromkeys(values)) if isinstance(values, list) else str(values)
