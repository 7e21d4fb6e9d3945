"""The names of the files that a run writes beside its result."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from deit_batch.output.resume import ExistingOutput, version_of
from deit_batch.output.run_report import read_report
from deit_batch.system import object_store
from deit_batch.system.atomic import behind_links

ENDINGS = (".partial", ".partial.stamps", ".lock", ".run.json", ".stamps", ".known", ".rows.jsonl")
"""Of the files and folders that a run may write beside its result."""


def written_for(out: str) -> list[str]:
    """All that a run may write: the result, which may be a folder, and what goes with it."""
    place = out if object_store.is_stored(out) else str(behind_links(out))
    return [out, *(f"{place}{ending}" for ending in ENDINGS)]


@dataclass(frozen=True, slots=True)
class Files:
    """The files of a run, by their names. `has_rows`: whether one of records stands beside an array."""

    result: Path
    has_rows: bool

    def beside(self, ending: str) -> Path:
        return self.result.with_name(f"{self.result.name}.{ending}")

    @property
    def report(self) -> Path:
        return self.beside("run.json")

    @property
    def partial(self) -> Path:
        return self.beside("partial")

    @property
    def partial_stamps(self) -> Path:
        return self.beside("partial.stamps")

    @property
    def stamps(self) -> Path:
        return self.beside("stamps")

    @property
    def rows(self) -> Path:
        return self.beside("rows.jsonl")

    @property
    def results(self) -> list[Path]:
        return [self.result, self.rows] if self.has_rows else [self.result]

    def existing(self) -> ExistingOutput:
        has_records = self.partial.exists() and self.partial.stat().st_size > 0
        return ExistingOutput(read_report(self.report), has_records, version_of(self.result))
