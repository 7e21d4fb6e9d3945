"""Says which lower bounds of pyproject.toml a resolution to the lowest versions could not reach, because of what other
packages need: bounds.py RESOLVED [PASSED OVER …]. Such a bound promises what nobody has tried. It may be somebody
else's release that raised it, so that is said, and is no error."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import NormalizedName, canonicalize_name
from packaging.version import Version

PYPROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"


def bounds() -> dict[NormalizedName, Version]:
    """The highest lower bound of each package that pyproject.toml names for users or tests."""
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    found: dict[NormalizedName, Version] = {}
    for text in (*project["dependencies"], *(text for extra in extras if extra != "bench" for text in extras[extra])):
        requirement = Requirement(text)
        name = canonicalize_name(requirement.name)
        for lowest in (Version(clause.version) for clause in requirement.specifier if clause.operator == ">="):
            found[name] = max(lowest, found.get(name, lowest))
    return found


def resolved(path: Path) -> dict[NormalizedName, Version]:
    """The versions in a file of name==version, as uv writes it."""
    lines = (line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    pairs = (line.split("==") for line in lines if line)
    return {canonicalize_name(name): Version(version) for name, version in pairs}


def main() -> None:
    path, *passed_over = sys.argv[1:]
    versions = resolved(Path(path))
    missed = {name: bound for name, bound in bounds().items() if name not in passed_over and versions[name] != bound}
    for name, bound in missed.items():
        print(f"bounds: {name}>={bound}: with the others, {versions[name]} is the oldest there can be")


if __name__ == "__main__":
    main()
