"""Names, labels and messages that others wrote forge no line and drive no terminal, in any form of text."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path
from xml.etree import ElementTree

from helpers import deit_batch, jpeg
from hypothesis import given
from hypothesis import strategies as st

from deit_batch.escaping import escape_controls

HOSTILE = "a\n::error::x\x1b[2J\x9b1m\x07\u202egpj\u2028b\r"
SHOWN = r"a\n::error::x\x1b[2J\x9b1m\x07\u202egpj\u2028b"


def drives(text: str) -> set[str]:
    """What of it is neither shown nor the end of a line."""
    return {each for each in text if unicodedata.category(each) in ("Cc", "Cs", "Zl", "Zp") or each == "\u202e"} - {
        "\n"
    }


@given(st.text(st.characters()))
def test_what_is_escaped_can_be_told(text: str) -> None:
    shown = escape_controls(text)
    assert drives(shown) == set()
    assert "\n" not in shown
    assert shown.encode() is not None  # no half of a surrogate pair is left
    plain = text.replace("\\", "")
    assert escape_controls(plain).encode("latin-1", "backslashreplace").decode("unicode_escape") == plain


def test_a_hostile_name_forges_no_line_of_any_command(tmp_path: Path) -> None:
    """Of an image, a folder that is a class, a file of the user's, an option."""
    for label in ("bag", HOSTILE):
        folder = tmp_path / "imgs" / label
        folder.mkdir(parents=True)
        (folder / f"{HOSTILE}.jpg").write_bytes(jpeg(len(label)))
    (tmp_path / "imgs" / "bag" / "bad.jpg").write_bytes(b"no image")
    (tmp_path / f"none{HOSTILE}.csv").write_text("nothing\n1\n")
    out = f"{HOSTILE}.jsonl"
    commands = [
        ("score", "--input", "imgs", "--model", "demo", "--out", out, "--dry-run"),
        ("score", "--input", "imgs", "--model", "demo", "--out", out),
        ("score", "--input", f"none{HOSTILE}.csv", "--model", "demo", "--out", "-"),
        ("score", "--input", f"x{HOSTILE}", "--model", "demo", "--out", "-", "--verbose"),
        ("score", "--input", "imgs", "--model", "demo", "--out", "-", f"--{HOSTILE}"),
        ("score", "--input", "imgs", "--model", HOSTILE, "--out", "-"),
        ("plot", f"{HOSTILE}.jpg", "--model", "demo", "--out", f"{HOSTILE}.x"),
        ("report", out, "--out", "r.html", "--label-map", f"{HOSTILE}.csv"),
        ("report", out, "--out", "r.html", "--labels", "imgs"),
        ("compare", out, out, "--fail-under", "1", "--junit", "j.xml"),
        ("evaluate", "--input", "imgs", "--model", "demo", "--out", HOSTILE, "--fail-under", "accuracy=0"),
    ]
    github = ("score", "--input", f"none{HOSTILE}.csv", "--model", "demo", "--out", "-", "--log-format", "github")
    for command in [*commands, github]:
        done = deit_batch(*command, cwd=tmp_path)
        assert drives(done.stdout + done.stderr) == set(), done.stderr
        assert not any(line.startswith("::error::x") for line in (done.stdout + done.stderr).splitlines()), done.stderr
        assert "unexpected" not in done.stderr, (command, done.stderr)
    (report,) = tmp_path.glob("*/report.md")
    assert drives(report.read_text()) == set()
    assert SHOWN in report.read_text()
    assert ElementTree.parse(tmp_path / "j.xml").getroot().tag == "testsuites"
    assert os.path.exists(tmp_path / out)
