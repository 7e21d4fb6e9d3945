"""Which gates were passed, in the XML that CI systems show beside their test results. There is no standard; this is the
common part of what GitLab, Jenkins and GitHub's actions read (https://github.com/testmoapp/junitxml)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

from deit_batch.atomic import write_atomically
from deit_batch.errors import OutputError

_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # XML 1.0, 2.2


def write_junit(path: Path, command: str, gates: Mapping[str, str | None]) -> None:
    """`gates`: of each by its name, why it was not passed, or None. Raises OutputError if the file can't be written."""
    failures = sum(why is not None for why in gates.values())
    suite = ElementTree.Element(
        "testsuite", name=f"deit-batch {command}", tests=str(len(gates)), failures=str(failures), errors="0"
    )
    for name, why in gates.items():
        case = ElementTree.SubElement(suite, "testcase", classname=f"deit-batch {command}", name=_clean(name))
        if why is not None:
            ElementTree.SubElement(case, "failure", message=_clean(why)).text = _clean(why)
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    try:
        write_atomically(path, ElementTree.tostring(root, "utf-8", xml_declaration=True) + b"\n")
    except OSError as error:
        raise OutputError(f"--junit {path}: can't be written: {error.strerror}") from error


def _clean(text: str) -> str:
    return _NO_XML.sub("\ufffd", text)
