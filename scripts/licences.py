"""Writes docs/licences.md: the licences of what is in the package, of all that it or its extras install, and of the
libraries that their wheels hold.

What a package says of itself is taken: its licence expression (PEP 639), or, where it has none yet, the licence or the
classifiers of its metadata. Versions are left out, so that the page changes when a licence does.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).resolve().parent.parent
NOT_FOR_USERS = ("bench", "dev", "docs", "release")
CUDA = ("cuda-", "nvidia-", "triton")  # of PyPI's torch for Linux; the page says so

LIBRARY = re.compile(r"lib([\w+]+?)(?:-[0-9a-f]{6,})*(?:\.[\d.]+)?\.(?:so|dylib)(?:\.[\d.]+)?")
GRAFTED = re.compile(r"\.libs/|\.dylibs/")

SPDX = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache": "Apache-2.0",
    "Apache 2.0": "Apache-2.0",
    "Apache 2.0 License": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD 3-Clause License": "BSD-3-Clause",
    "BSD License": "BSD",
    "ISC License": "ISC",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Other/Proprietary License": "proprietary",
    "Python Software Foundation License": "PSF-2.0",
}
"""What older metadata say, as https://spdx.org/licenses has it; "BSD" where they don't say which."""

PERMITTED = frozenset(
    "0BSD Apache-2.0 BSD BSD-2-Clause BSD-3-Clause BSL-1.0 CC0-1.0 CNRI-Python ISC LLVM-exception MIT MIT-0 MIT-CMU "
    "MPL-2.0 PSF-2.0 Zlib".split()
)
"""Permissive ones, and MPL-2.0, whose copyleft ends at the files of the package itself."""

BUNDLED = {
    "Xau": "MIT",
    "avif": "BSD-2-Clause",
    "brotlicommon": "MIT",
    "brotlidec": "MIT",
    "crc32c": "BSD-3-Clause",
    "de265": "LGPL-3.0-or-later",
    "freetype": "FTL",
    "gfortran": "GPL-3.0-or-later WITH GCC-exception-3.1",
    "gomp": "GPL-3.0-or-later WITH GCC-exception-3.1",
    "harfbuzz": "MIT-Modern-Variant",
    "heif": "LGPL-3.0-or-later",
    "jemalloc": "BSD-2-Clause",
    "jpeg": "IJG AND BSD-3-Clause AND Zlib",
    "lcms2": "MIT",
    "lzma": "0BSD",
    "openjp2": "BSD-2-Clause",
    "png16": "libpng-2.0",
    "quadmath": "LGPL-2.1-or-later",
    "scipy_openblas": "BSD-3-Clause",
    "scipy_openblas64_": "BSD-3-Clause",
    "sharpyuv": "BSD-3-Clause",
    "tiff": "libtiff",
    "webp": "BSD-3-Clause",
    "webpdemux": "BSD-3-Clause",
    "webpmux": "BSD-3-Clause",
    "x265": "GPL-2.0-or-later",
    "xcb": "MIT",
    "zstd": "BSD-3-Clause",
}
"""Libraries of others that wheels hold, by what stands between "lib" and the ending of the file's name."""

PERMITTED_IF_BUNDLED = (
    "FTL", "GPL-3.0-or-later WITH GCC-exception-3.1", "IJG AND BSD-3-Clause AND Zlib", "LGPL-2.1-or-later",
    "LGPL-3.0-or-later", "MIT-Modern-Variant", "libpng-2.0", "libtiff",
)  # fmt: skip
"""Beside PERMITTED: what is permissive, too, and copyleft that ends at the shared library, which can be replaced."""

EXCEPTIONS = {"azureml-inference-server-http": "proprietary"}
"""Of the extra `azureml`, which is of use inside Azure ML only; the page says so."""


def requirements() -> dict[str, list[Requirement]]:
    """Of users, by extra; those without an extra under ""."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    listed = {"": project["dependencies"], **project["optional-dependencies"]}
    return {
        extra: [Requirement(text) for text in texts if not text.startswith("deit-batch")]
        for extra, texts in listed.items()
        if extra not in NOT_FOR_USERS
    }


def installed_by(requirements: Iterable[Requirement]) -> set[str]:
    """The names of all packages that these bring here. Raises PackageNotFoundError if one is not installed."""
    found: set[tuple[str, str]] = set()

    def follow(requirement: Requirement) -> None:
        name = canonicalize_name(requirement.name)
        for extra in ("", *requirement.extras):
            if (name, extra) in found:
                continue
            found.add((name, extra))
            for text in distribution(name).requires or ():
                needed = Requirement(text)
                wanted = needed.marker is None or needed.marker.evaluate({"extra": extra})
                if wanted and not needed.name.startswith(CUDA):
                    follow(needed)

    for requirement in requirements:
        follow(requirement)
    return {name for name, _ in found}


def licence(name: str) -> str:
    """As an SPDX expression, or what the package says if that is no known licence."""
    metadata = distribution(name).metadata
    if "License-Expression" in metadata:  # asked first: what a missing key gives depends on who reads the metadata
        return str(metadata["License-Expression"])
    first_line = str(metadata["License"]).strip().partition("\n")[0].strip() if "License" in metadata else ""
    classifiers = (text.split(" :: ") for text in metadata.get_all("Classifier", []))
    classified = " OR ".join(SPDX.get(last, last) for kind, *_, last in classifiers if kind == "License")
    stated = SPDX.get(first_line, first_line)
    return stated if is_permitted(stated) else classified or stated or "none stated"


def is_permitted(expression: str) -> bool:
    names = set(re.findall(r"[\w.+-]+", expression)) - {"AND", "OR", "WITH"}
    return bool(names) and names <= PERMITTED


def bundled(name: str) -> dict[str, str]:
    """The libraries of others in a package's wheel, with their licences: all in the folder where auditwheel and
    delocate put them, and those of BUNDLED elsewhere. What is linked into an extension module is not seen."""
    found = {}
    for file in distribution(name).files or ():
        library = LIBRARY.fullmatch(file.name)
        if library and (library[1] in BUNDLED or GRAFTED.search(str(file))):
            found[library[1]] = BUNDLED.get(library[1], "unknown")
    return found


def page() -> str:
    """The whole of docs/licences.md, of what is installed here."""
    direct = requirements()
    listed = [requirement for group in direct.values() for requirement in group]
    brought = installed_by(listed) - {canonicalize_name(requirement.name) for requirement in listed}
    by_library: dict[str, list[str]] = {}
    for name in sorted(installed_by(listed)):
        for library in bundled(name):
            by_library.setdefault(library, []).append(name)
    by_licence: dict[str, list[str]] = {}
    for name in sorted(brought):
        by_licence.setdefault(licence(name), []).append(name)
    extras = ((f"`{extra}`", requirement) for extra, group in direct.items() if extra for requirement in group)
    return PAGE.format(
        dependencies="\n".join(_row(requirement.name, licence(requirement.name)) for requirement in direct[""]),
        extras="\n".join(_row(extra, needed.name, licence(needed.name)) for extra, needed in extras),
        bundled="\n".join(
            _row(f"lib{library}", BUNDLED[library], ", ".join(names))
            for library, names in sorted(by_library.items(), key=lambda each: each[0].lower())
        ),
        brought="\n".join(_row(text, ", ".join(names)) for text, names in sorted(by_licence.items())),
    )


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def refused(names: Iterable[str]) -> Iterator[str]:
    """The packages, with their licences, that may not be a part of deit-batch."""
    for name in sorted(names):
        stated = licence(name)
        if not is_permitted(stated) and EXCEPTIONS.get(name) != stated:
            yield f"{name}: {stated}"
        for library, terms in bundled(name).items():
            if not is_permitted(terms) and terms not in PERMITTED_IF_BUNDLED:
                yield f"{name}: bundles lib{library}: {terms}"


PAGE = """# Licences

Written by `scripts/licences`. What packages say of themselves, not a lawyer's word.

deit-batch is under [Apache-2.0](../LICENSE). Its texts, pages, styles and scripts are its own, but for these:

| what | where | from | licence |
| --- | --- | --- | --- |
| sample pictures | `examples/` | [Fashion-MNIST][], Zalando SE | [MIT](../examples/LICENSE) |
| `doctor`'s picture | `deit_batch/doctor.py` | the same | the same |
| the demo model, trained by us | `deit_batch/demo/` | the pictures of the same | the same |
| the names of ImageNet's classes | `deit_batch/model/imagenet.csv` | [timm][], Ross Wightman | Apache-2.0 |

[Fashion-MNIST]: https://github.com/zalandoresearch/fashion-mnist
[timm]: https://github.com/huggingface/pytorch-image-models

Wheel and sdist hold the texts of these licences, and [NOTICE](../NOTICE). No checkpoint comes with them but the demo
model: one that is fetched from the Hub has the licence that its own page states
(`facebook/deit-base-patch16-224`: Apache-2.0).

## What is installed with it

| package | licence |
| --- | --- |
{dependencies}

PyPI's torch for Linux brings NVIDIA's CUDA libraries, which are under NVIDIA's own terms; torch from PyTorch's CPU
index does not.

## Extras

| extra | package | licence |
| --- | --- | --- |
{extras}

`azureml-inference-server-http` is Microsoft's, under [terms](https://aka.ms/azureml-sdk-license) of its own; it is of
use inside Azure ML only.

## What these bring along

On Linux with Python 3.11.

| licence | packages |
| --- | --- |
{brought}

"BSD" is what a package says that does not say which. A test refuses a package whose licence is neither permissive nor
MPL-2.0, unless it is named above. What only tests and benchmarks use is not passed on, and not listed.

## What their wheels hold of others

Shared libraries, on Linux. What is linked into a package's own modules is in that package's licence texts.

| library | licence | in |
| --- | --- | --- |
{bundled}

Copyleft is permitted where it ends at the library itself, a file that anyone may replace by another: the LGPL, and the
GPL with GCC's runtime exception. So HEIC is read with pi-heif, whose wheels hold a decoder alone; those of pillow-heif
hold x265, too, an encoder under the GPL, and the same test would refuse them.
"""

if __name__ == "__main__":
    (REPOSITORY / "docs" / "licences.md").write_text(page(), encoding="utf-8")
