"""What a gate found, as the XML that CI systems show: each gate is a test. The format:
https://github.com/testmoapp/junitxml, of which only what GitLab's and Jenkins' readers know is written."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias
from xml.etree import ElementTree

from deit_batch.errors import Interrupted, OutputError
from deit_batch.escaping import escape_controls
from deit_batch.system.atomic import require_room, write_atomically

logger = logging.getLogger("deit_batch")

Verdict: TypeAlias = Literal["passed", "failure", "error"]

_NO_XML = re.compile("[^\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 can't hold, escaped or not (section 2.2), and what ends a line, which it would not leave as it is."""


@dataclass(frozen=True, slots=True)
class Case:
    """A gate under a name that stays the same from run to run, and what is to be said of it. `error`: the run failed,
    so nothing is known."""

    name: str
    verdict: Verdict
    message: str


@contextmanager
def write_junit(path: Path | None, suite: str) -> Iterator[list[Case]]:
    """Writes the cases that are put into the list, when the command in it ends; and the error, if it ends by one, so
    that no file of an earlier run is taken for its. Raises UsageError if there is no room for it, OutputError if it
    can't be written; where the command ends otherwise than with 0, that is only said."""
    if path is not None:
        require_room(path, "--junit")
    cases: list[Case] = []
    try:
        yield cases
    except (Exception, Interrupted, SystemExit) as error:
        if not isinstance(error, SystemExit):
            cases.append(Case("run", "error", str(error)))
        try:
            _write(path, suite, cases)
        except OutputError as unwritten:
            if isinstance(error, SystemExit) and not error.code:
                raise
            logger.error("%s", unwritten)  # the status says already that not all is well
        raise
    _write(path, suite, cases)


def _write(path: Path | None, suite: str, cases: list[Case]) -> None:
    if path is None:
        return
    try:
        write_atomically(path, as_xml(suite, cases))
    except OSError as error:
        message = f"--junit {path}: can't be written: {error.strerror}; all else that this run wrote stands"
        raise OutputError(message) from error


def as_xml(suite: str, cases: list[Case]) -> bytes:
    """The document, in UTF-8. Control characters are escaped."""
    counts = {f"{kind}s": sum(case.verdict == kind for case in cases) for kind in ("failure", "error")}
    about = {"name": suite, "tests": str(len(cases)), **{kind: str(number) for kind, number in counts.items()}}
    root = ElementTree.Element("testsuites")
    tests = ElementTree.SubElement(root, "testsuite", about)
    for case in cases:
        test = ElementTree.SubElement(tests, "testcase", classname=suite, name=_clean(case.name))
        message = _clean(case.message)
        if case.verdict == "passed":
            ElementTree.SubElement(test, "system-out").text = message
        else:
            ElementTree.SubElement(test, case.verdict, message=message).text = message
    ElementTree.indent(root)
    document: bytes = ElementTree.tostring(root, encoding="UTF-8", xml_declaration=True)
    return document + b"\n"


def _clean(text: str) -> str:
    return _NO_XML.sub("\ufffd", escape_controls(text))
