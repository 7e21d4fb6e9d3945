"""The pages: each command of the tutorial and the how-to pages is run, and prints what is shown."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import boto3
import numpy as np
import pytest
from faulty_store import SECRET
from helpers import COMMAND, EXAMPLES, coverage_settings
from markdown_it import MarkdownIt
from warm import Warm

REPOSITORY = EXAMPLES.parent
DOCS = REPOSITORY / "docs"
TUTORIAL = DOCS / "tutorial.md"
PAGES = [TUTORIAL, *sorted((DOCS / "how-to").glob("*.md"))]
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
"""With the command itself, for pages that kill it; the others have that of warm.py before it."""
TOOLS = ("bash", "curl", "base64", "tar")

SHOWN = "text"
EXCUSE = re.compile(r"\(not run by the tests( of this page)?: [^)]{10,}\)")
BETWEEN = "==== the next block ===="


@dataclass
class Step:
    """A block that is run, and the block below it: what it prints, where that is shown."""

    command: str
    shown: str | None = None


def steps(text: str) -> list[Step]:
    """All code of a page is run, or shows what was printed, or stands below a reason why it isn't run."""
    found: list[Step] = []
    said = ""
    for token in MarkdownIt().parse(text):
        if token.type == "inline":
            said = " ".join(token.content.split())
        elif token.type in ("fence", "code_block"):
            excused, said = EXCUSE.search(said), ""
            if token.info == "sh" and not excused:
                found.append(Step(token.content))
            elif token.info == "python" and not excused:
                found.append(Step(f"python - <<'END OF PYTHON'\n{token.content}END OF PYTHON\n"))
            elif token.info == SHOWN and found and found[-1].shown is None:
                found[-1].shown = token.content
            elif token.info not in ("sh", "python"):
                raise ValueError(
                    f"a {token.info or 'nameless'} block is neither run nor what one prints:\n{token.content}"
                )
    return found


def printed_by(commands: list[str], folder: Path, environment: dict[str, str]) -> list[str]:
    """What each prints, to stdout or stderr. They are lines of one shell, which ends where one of them fails."""
    if not commands:
        return []
    script = f"\necho '{BETWEEN}'\n".join(commands)
    done = subprocess.run(
        ["bash", "-eu", "-c", script],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout.split(f"{BETWEEN}\n")


def agree(printed: str, shown: str) -> bool:
    """… stands for anything in a line."""
    return re.fullmatch(".*".join(map(re.escape, shown.strip().split("…"))), printed.strip()) is not None


def with_free_ports(text: str) -> str:
    for port in ("8000", "8010"):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            text = text.replace(port, str(free.getsockname()[1]))
    return text


@dataclass
class Trial:
    """A page's steps, and what they print."""

    steps: list[Step]
    printed: list[str]


def tried(page: Path, folder: Path, environment: dict[str, str]) -> Trial:
    shutil.copytree(EXAMPLES, folder / ("examples" if page == TUTORIAL else "imgs"))
    home = folder / "home"
    home.mkdir()
    text = page.read_text()
    found = steps(with_free_ports(text))
    variables = {**environment, "HOME": str(home), **({"PATH": PATH} if "KILL" in text else {})}
    return Trial(found, printed_by([step.command for step in found], folder, variables))


@pytest.fixture(scope="module")
def environment(s3_server: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Of a machine without a network, but for a store that has the sample pictures in its bucket. It is taken once:
    pytest changes os.environ while the threads of `trials` would read it."""
    address = f"http://127.0.0.1:{s3_server}"
    account = {"aws_access_key_id": "someone", "aws_secret_access_key": SECRET, "region_name": "us-east-1"}
    client = boto3.client("s3", endpoint_url=address, **account)
    client.create_bucket(Bucket="bucket")
    for path in EXAMPLES.glob("*/*.png"):
        client.put_object(Bucket="bucket", Key=f"imgs/{path.relative_to(EXAMPLES)}", Body=path.read_bytes())
    home, warm_path = (tmp_path_factory.mktemp(name) for name in ("home", "warm"))
    variables = {
        **os.environ,
        "HOME": str(home),
        "PATH": f"{warm_path}:{PATH}",
        "HF_HUB_OFFLINE": "1",
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    warm = Warm(warm_path, COMMAND, variables, coverage_settings())
    yield variables
    warm.end()


@pytest.fixture(scope="module")
def trials(
    request: pytest.FixtureRequest, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[Path, Future[Trial]]]:
    """Those that were asked for, one a core: most of a command's time is one core's."""
    calls = [item.callspec for item in request.session.items if hasattr(item, "callspec")]
    wanted = [call.params["page"] for call in calls if call.params.get("page") in PAGES]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield {page: pool.submit(tried, page, tmp_path_factory.mktemp(page.stem), environment) for page in wanted}


@pytest.mark.skipif(not all(map(shutil.which, TOOLS)), reason=f"the pages' commands need {', '.join(TOOLS)}")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_does_what_it_says(page: Path, trials: dict[Path, Future[Trial]]) -> None:
    trial = trials[page].result()
    for step, printed in zip(trial.steps, trial.printed, strict=True):
        if step.shown is not None and not agree(printed, step.shown):
            assert printed == step.shown, step.command


@pytest.mark.parametrize(
    "block",
    [
        "```\nls\n```",
        "```bash\nls\n```",
        "```text\nof nothing\n```",
        "    ls",
        "```sh\nls\n```\n```text\na\n```\n```text\nb\n```",
    ],
)
def test_code_that_is_not_run_is_refused(block: str) -> None:
    with pytest.raises(ValueError, match="is neither run nor what one prints"):
        steps(f"As follows:\n\n{block}\n")


def test_pictures_that_are_alike_are_found_beside_one_that_can_not_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"imgs/trouser/{number:05}.png" for number in range(6)]
    rows = [{"image": name, **({"error": {"type": "DecodeError"}} if name == names[4] else {})} for name in names]
    (tmp_path / "features.npy.rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    angles = np.array([0.0, 0.5, 0.9, 1.0, np.nan, 2.0])
    np.save(tmp_path / "features.npy", np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32))
    monkeypatch.chdir(tmp_path)
    for code in re.findall(r"```python\n(.*?)```", (DOCS / "how-to" / "extract-features.md").read_text(), re.DOTALL)[
        :2
    ]:
        exec(code, {})
    alike, nearest = f"{names[2]} {names[3]}", [f"1.00 {names[3]}", f"0.92 {names[1]}", f"0.62 {names[0]}"]
    assert capsys.readouterr().out.splitlines() == ["(5, 2)", alike, *nearest]


def test_only_a_reason_keeps_a_command_from_being_run() -> None:
    excused = "Fetch it (not run by the\ntests: it needs the Hub):\n\n```sh\nfalse\n```\n"
    page = f"{excused}\nThen:\n\n```sh\nls\n```\n```text\na … c\n```\n"
    assert steps(page) == [Step("ls\n", "a … c\n")]
    assert agree("a b c\n", "a … c\n")
    assert not agree("a b\n c\n", "a … c\n")
