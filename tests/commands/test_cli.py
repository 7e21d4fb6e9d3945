"""The installed command, as cron and CI see it: exit statuses, streams, signals, configuration, help."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from helpers import COMMAND, EXAMPLES, deit_batch, jpeg, read_json, read_jsonl, wait_for, wait_for_growth

from deit_batch.cli import COMMANDS, main
from deit_batch.system.signals import stop_on_signals

README = EXAMPLES.parent / "README.md"


def test_the_main_job(tmp_path: Path) -> None:
    done = deit_batch("score", "--input", EXAMPLES, "--model", "demo", "--out", "preds.jsonl", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    records = read_jsonl(tmp_path / "preds.jsonl")
    right = [r["predictions"][0]["label"].replace(" ", "-") == Path(r["image"]).parent.name for r in records]
    assert len(right) == 40
    assert sum(right) >= 32
    assert "40 of 40 images scored" in done.stderr


def test_stdout_carries_results_only_and_stdin_is_read(tmp_path: Path) -> None:
    names = "".join(f"{path}\n" for path in sorted(EXAMPLES.glob("bag/*.png")))
    done = deit_batch(
        "score", "--input", "-", "--out", "-", "--model", "demo", "--top-k", "1", cwd=tmp_path, input=names
    )
    assert done.returncode == 0
    assert [json.loads(line)["predictions"][0]["label"] for line in done.stdout.splitlines()] == ["bag"] * 4
    assert os.listdir(tmp_path) == []


def test_some_failures_are_status_3_unless_within_the_threshold(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text(f"{EXAMPLES}/bag/00018.png\nnone.jpg\n")
    command = ["score", "--input", "t.txt", "--model", "demo", "--out", "a.jsonl"]
    assert deit_batch(*command, cwd=tmp_path).returncode == 3
    again = deit_batch(*command, cwd=tmp_path)
    assert (again.returncode, "finished already" in again.stderr) == (3, True)
    for threshold, status in (("1", 0), ("50%", 0), ("49%", 3)):
        assert deit_batch(*command, "--error-threshold", threshold, cwd=tmp_path).returncode == status
    assert "1 failed (1 FetchError)" in again.stderr


def test_a_run_gives_up_when_too_much_fails_and_goes_on_when_that_is_mended(tmp_path: Path) -> None:
    """As when a disk is not mounted."""
    (tmp_path / "disk").mkdir()
    good = sorted(EXAMPLES.glob("*/*.png"))
    names = [*map(str, good), *(f"disk/{path.name}" for path in good)]
    (tmp_path / "t.txt").write_text("\n".join(names))
    command = ["score", "--input", "t.txt", "--model", "demo", "--out", "p.jsonl", "--batch-size", "4"]
    for _ in range(2):
        done = deit_batch(*command, "--error-threshold", "5", cwd=tmp_path)
        assert done.returncode == 1
        assert "given up: 8 of 48 inputs failed (8 FetchError)" in done.stderr.splitlines()[-1]
        assert read_json(tmp_path / "p.jsonl.run.json")["status"] == "gave up"
        assert len(read_jsonl(tmp_path / "p.jsonl.partial")) == 48
    for path in good:
        (tmp_path / "disk" / path.name).write_bytes(path.read_bytes())
    mended = deit_batch(*command, "--error-threshold", "5", cwd=tmp_path)
    assert (mended.returncode, "going on after 40 images" in mended.stderr) == (0, True)
    assert all(record["predictions"] for record in read_jsonl(tmp_path / "p.jsonl"))


def test_two_runs_on_one_output(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text(f"{EXAMPLES}/bag/00018.png\n" * 20_000)
    command = ["score", "--input", "t.txt", "--model", "demo", "--out", "p.jsonl"]
    with subprocess.Popen([COMMAND, *command], cwd=tmp_path, stderr=subprocess.DEVNULL) as process:
        wait_for_growth(tmp_path / "p.jsonl.partial")
        for fresh in ([], ["--fresh"]):
            second = deit_batch(*command, *fresh, cwd=tmp_path)
            assert second.returncode == 1
            assert f"p.jsonl is being written by process {process.pid} on " in second.stderr
        process.kill()
    assert (tmp_path / "p.jsonl.lock").exists()  # stale: it blocks nobody
    (tmp_path / "t.txt").write_text(f"{EXAMPLES}/bag/00018.png\n" * 20)
    assert deit_batch(*command, "--fresh", cwd=tmp_path).returncode == 0
    assert sorted(os.listdir(tmp_path)) == ["p.jsonl", "p.jsonl.run.json", "p.jsonl.stamps", "t.txt"]


def test_a_model_that_is_none_is_status_2_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    command = ["score", "--input", str(EXAMPLES), "--out", "p.jsonl", "--model", "empty"]
    done = deit_batch(*command, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "deit-batch: empty is no checkpoint: there is no empty/config.json\n"
    assert "Traceback" in deit_batch(*command, "--verbose", cwd=tmp_path).stderr
    (line,) = deit_batch(*command, "--log-format", "json", cwd=tmp_path).stderr.splitlines()
    assert json.loads(line)["level"] == "error"
    assert (
        "Traceback"
        in json.loads(deit_batch(*command, "--log-format", "json", "--verbose", cwd=tmp_path).stderr)["traceback"]
    )


@pytest.mark.parametrize(
    "wrong",
    [
        ["--input", "none", "--out", "p.jsonl"],
        ["--input", str(EXAMPLES)],
        ["--out", "p.jsonl"],
        ["--input", str(EXAMPLES), "--out", "p.jsonl", "--top-k", "0"],
        ["--input", str(EXAMPLES), "--out", "p.jsonl", "--top-k", "some"],
        ["--input", str(EXAMPLES), "--out", "p.jsonl", "--error-threshold", "x"],
        ["--input", str(EXAMPLES), "--out", "p.jsonl", "--error-threshold", "0.5"],
        ["--input", str(EXAMPLES), "--out", "p.jsonl", "--device", "cuda:99", "--model", "demo"],
        ["--input", str(EXAMPLES), "--out", "p.jsonl", "--config", "none.toml"],
        ["--input", str(EXAMPLES), "--out", "p.jsonl", "--root", "none"],
        ["--input", str(EXAMPLES), "--out", "p.jsonl", "--error-threshold", "200%"],
    ],
)
def test_wrong_usage_is_status_2(wrong: list[str], tmp_path: Path) -> None:
    done = deit_batch("score", *wrong, cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("command", "option", "value", "why"),
    [
        ("score", "--unsure-below", "60%", "'60%' is not a number from 0 to 1"),
        ("score", "--threshold", "half", "'half' is not a number from 0 to 1"),
        ("score", "--fetch-seconds", "", "'' is not a number above 0 up to 86400"),
        ("score", "--limit", "1.5", "'1.5' is not a whole number from 1 up"),
        ("serve", "--port", "http", "'http' is not a whole number from 0 to 65535"),
        ("finetune", "--validation-share", "x", "'x' is not a number above 0 and below 1"),
    ],
)
def test_what_is_no_number_is_told_which_numbers_are_meant(command: str, option: str, value: str, why: str) -> None:
    done = CliRunner().invoke(main, [command, option, value])
    assert (done.exit_code, why in done.stderr) == (2, True), done.stderr


@pytest.mark.parametrize("name", ["DEIT_BATCH_MODEL", "DEIT_BATCH_SCORE_TOPK"])
def test_a_variable_that_names_no_option_is_wrong_usage(name: str) -> None:
    result = CliRunner().invoke(main, ["score", "--input", str(EXAMPLES), "--dry-run"], env={name: "demo"})
    assert (result.exit_code, f"there is no option for the variable {name}" in result.stderr) == (2, True)


@pytest.mark.parametrize("service", ["DEIT_BATCH", "DEIT_BATCH_SCORE", "DEIT_BATCH_SERVE"])
def test_what_kubernetes_says_of_a_service_is_no_option(service: str) -> None:
    links = {"SERVICE_HOST": "10.0.0.1", "SERVICE_PORT": "80", "SERVICE_PORT_HTTP": "80", "PORT": "tcp://10.0.0.1:80"}
    links |= {f"PORT_80_TCP{end}": "80" for end in ("", "_PROTO", "_PORT", "_ADDR")}
    env = {f"{service}_{name}": value for name, value in links.items()}
    result = CliRunner().invoke(main, ["score", "--input", str(EXAMPLES), "--dry-run"], env=env)
    assert (result.exit_code, result.stderr) == (0, "")
    served = CliRunner().invoke(main, ["serve", "--model", "/nowhere"], env=env)  # gets as far as its model
    assert "no folder /nowhere" in served.stderr


def test_an_unforeseen_fault_is_one_line_and_status_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from deit_batch import runner

    def broken(*args: object, **kwargs: object) -> None:
        raise ZeroDivisionError("of all things")

    monkeypatch.setattr(runner, "run", broken)
    result = CliRunner().invoke(main, ["score", "--input", str(EXAMPLES), "--out", str(tmp_path / "p.jsonl")])
    assert result.exit_code == 1
    assert "unexpected ZeroDivisionError" in result.stderr
    assert "Traceback" not in result.stderr


def test_quiet_says_nothing_and_a_reader_that_goes_away_is_no_traceback(tmp_path: Path) -> None:
    done = deit_batch("score", "--input", EXAMPLES, "--model", "demo", "--out", "p.jsonl", "--quiet", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    piped = f"{COMMAND} score --input {EXAMPLES} --model demo --out - | true"
    ended = subprocess.run(piped, shell=True, capture_output=True, text=True, check=False)
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGHUP, 129), (signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_a_run_that_can_be_continued(signum: signal.Signals, status: int, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text(f"{EXAMPLES}/bag/00018.png\n{EXAMPLES}/coat/00006.png\n" * 20_000)
    command = [COMMAND, "score", "--input", "t.txt", "--model", "demo", "--out", "p.jsonl", "--workers", "2"]
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"TMPDIR": str(temporary)},
    ) as process:
        wait_for_growth(tmp_path / "p.jsonl.partial")
        os.killpg(process.pid, signum)  # as a terminal does: to the workers too
        _, stderr = process.communicate(timeout=20)
    assert process.returncode == status
    assert stderr.splitlines()[-1].endswith(f"stopped by {signum.name}; run the same command again to continue")
    assert "Traceback" not in stderr
    assert not (tmp_path / "p.jsonl").exists()
    assert json.loads((tmp_path / "p.jsonl.run.json").read_bytes())["status"] == "interrupted"
    kept = len(read_jsonl(tmp_path / "p.jsonl.partial"))
    assert 0 < kept < 40_000
    assert os.listdir(temporary) == []


@pytest.mark.parametrize("imported", ["click", "deit_batch.commands.sort", "deit_batch.runner"])
def test_ctrl_c_while_the_program_is_still_being_imported_is_a_line(imported: str, tmp_path: Path) -> None:
    program = (
        "import os, signal, sys\n"
        "class Interrupting:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {imported!r}: os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupting())\n"
        "from deit_batch.__main__ import main\n"
        "main()\n"
    )
    command = [sys.executable, "-c", program, "score", "--input", str(EXAMPLES), "--model", "demo", "--out", "p.jsonl"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "deit-batch: stopped by SIGINT; run the same command again to continue\n"
    assert os.listdir(tmp_path) == []
    scripts = tomllib.loads((README.parent / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"deit-batch": "deit_batch.__main__:main"}


def test_what_nohup_has_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signals() as stop:
            signal.raise_signal(signal.SIGHUP)
            stop.check()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_stops_a_run_that_waits_for_a_slow_server(server: str, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text(f"{server}/slow.jpg\n" * 40)
    command = [COMMAND, "score", "--input", "t.txt", "--model", "demo", "--out", "p.jsonl", "--allow-private-hosts"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        wait_for(tmp_path / "p.jsonl.partial")
        time.sleep(2)
        process.terminate()
        process.communicate(timeout=20)  # one of the fetches alone takes longer
    assert process.returncode == 143


def test_a_killed_run_is_continued_to_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text(f"{EXAMPLES}/bag/00018.png\n{EXAMPLES}/coat/00006.png\n" * 750)
    command = ["score", "--input", "t.txt", "--model", "demo", "--out"]
    assert deit_batch(*command, "whole.jsonl", cwd=tmp_path).returncode == 0
    with subprocess.Popen([COMMAND, *command, "p.jsonl"], cwd=tmp_path, stderr=subprocess.DEVNULL) as process:
        wait_for_growth(tmp_path / "p.jsonl.partial")
        process.kill()
    done = deit_batch(*command, "p.jsonl", cwd=tmp_path)
    assert "going on after" in done.stderr
    assert (tmp_path / "p.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_dry_run_says_what_would_be_scored_without_torch(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('"a.jpg"\n"https://h/b.jpg"\n"c.jpg"\n5\n"data:;base64,AAAA"\n"d.jpg"\n"e.jpg"\n')
    probe = (
        "import sys; from click.testing import CliRunner; from deit_batch.cli import main\n"
        "print(CliRunner().invoke(main, sys.argv[1:]).stdout)\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
    )
    command = ["score", "--input", "t.jsonl", "--dry-run", "--top-k", "3"]
    done = subprocess.run(
        [sys.executable, "-c", probe, *command], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "7 inputs: 4 files, 1 URLs, 1 RowErrors, 1 base64 strings" in done.stdout
    assert "  https://h/b.jpg\n" in done.stdout
    assert "  top-k = 3\n" in done.stdout
    (tmp_path / "imgs").mkdir()
    (tmp_path / "imgs" / "a.jpg").write_bytes(jpeg())
    (tmp_path / "imgs" / ".b.jpg").touch()
    done = deit_batch("score", "--input", "imgs", "--dry-run", cwd=tmp_path)
    assert done.stdout.startswith("1 input: 1 files\npassed over: 1 hidden\n  imgs/a.jpg\n")


def test_dry_run_says_every_option_as_it_was_given() -> None:
    words = "--out p.jsonl --error-threshold 1.5% --metrics-file m.prom --review r.csv --unsure-below 0.5 --shard 0/2"
    done = CliRunner().invoke(main, ["score", str(EXAMPLES), "--dry-run", "--model", "demo", *words.split()])
    assert done.exit_code == 0, done.stderr
    for said in ('error-threshold = "1.5%"', 'metrics-file = "m.prom"', 'review = "r.csv"', "shard = [0, 2]"):
        assert f"  {said}\n" in done.stdout


def test_dry_run_says_what_the_model_is_and_its_recipe(checkpoint: Path, tmp_path: Path) -> None:
    """Without torch, and without a question to the Hub."""
    (tmp_path / "t.txt").write_text("a.jpg\n")
    golden = Path(__file__).parent.parent / "model" / "golden" / "deit3"
    command = ["score", "--input", "t.txt", "--dry-run", "--model"]

    def said(*args: str | Path) -> list[str]:
        done = deit_batch(*command, *args, cwd=tmp_path, env={**os.environ, "HF_HOME": str(tmp_path / "hf")})
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()[-3:]

    model, runtime, recipe = said(checkpoint)
    architecture = json.loads((checkpoint / "config.json").read_bytes())["architectures"][0]
    assert model == (
        f"model: {checkpoint}, in the form of transformers: {architecture}, 5 labels, 32x32 pixels, safetensors"
    )
    assert runtime == "runtime: native"
    assert json.loads(recipe.removeprefix("recipe: "))["rounding"] == "down"
    model, runtime, recipe = said(golden, "--decode", "fast", "--dtype", "int8")
    assert "deit3, in the form of timm: ViTForImageClassification, 5 labels" in model
    assert runtime == "runtime: onnx"
    assert {("resize", 32), ("rounding", "half-even"), ("fast", True)} <= {
        (name, value) for name, value in json.loads(recipe.removeprefix("recipe: ")).items() if name in SHOWN
    }
    *_, model = said("nobody/nothing")
    assert model == "model: nobody/nothing: not on this machine, or not all of it; a run fetches it from the Hub"
    wrong = deit_batch(*command, tmp_path, cwd=tmp_path)
    assert (wrong.returncode, "is no checkpoint" in wrong.stderr) == (2, True)


SHOWN = ("resize", "rounding", "fast")


def test_options_come_from_a_file_a_variable_and_the_command_line_in_that_order(tmp_path: Path) -> None:
    (tmp_path / "d.toml").write_text('keep = "id"\ntop-k = 9\n[score]\ninput = "t.csv"\ntop-k = 2\nbatch-size = 7\n')
    (tmp_path / "t.csv").write_text("image,id\na.jpg,1\n")

    def options(*args: str, **variables: str) -> dict[str, str]:
        env = {**os.environ, **variables}
        done = deit_batch("score", "--config", "d.toml", "--dry-run", *args, cwd=tmp_path, env=env)
        assert done.returncode == 0, done.stderr
        return dict(line.strip().split(" = ") for line in done.stdout.splitlines() if " = " in line)

    assert options()["top-k"] == "2"
    assert options()["keep"] == '["id"]'
    assert options(DEIT_BATCH_SCORE_TOP_K="3")["top-k"] == "3"
    assert options("--top-k", "all", DEIT_BATCH_SCORE_TOP_K="3")["top-k"] == '"all"'
    assert options(DEIT_BATCH_SCORE_TOP_K="3")["batch-size"] == "7"
    misspelt = CliRunner().invoke(
        main, ["score", "--config", str(tmp_path / "d.toml"), "--dry-run"], env={"DEIT_BATCH_SCORE_TOPK": "3"}
    )
    assert (misspelt.exit_code, "variable DEIT_BATCH_SCORE_TOPK" in misspelt.stderr) == (2, True)
    (tmp_path / "d.toml").write_text('input = "t.csv"\ncolour = "red"\n')
    wrong = deit_batch("score", "--config", "d.toml", "--dry-run", cwd=tmp_path)
    assert (wrong.returncode, "no option colour" in wrong.stderr) == (2, True)
    (tmp_path / "d.toml").write_text("eror-threshold = 1\n[scores]\n")
    misspelt = CliRunner().invoke(main, ["score", "--config", str(tmp_path / "d.toml")])
    told = "no option eror-threshold (do you mean error-threshold?), scores (do you mean score?)"
    assert (misspelt.exit_code, told in misspelt.stderr) == (2, True)
    assert "'--config': there is no file n.toml" in CliRunner().invoke(main, ["score", "--config", "n.toml"]).stderr
    (tmp_path / "d.toml").write_text("input = ")
    assert deit_batch("score", "--config", "d.toml", "--dry-run", cwd=tmp_path).returncode == 2
    for cut in (
        *("top-k = 3.9", "batch-size = 2.5", "top-k = true", "limit = true", "limit = [1]", "limit = {a = 1}"),
        *("root = 5", "top_k = 3\ntop-k = 4", "limit = 99999999999999999999"),
        *("threshold = nan", "decode-seconds = inf", "keep = [true]", "fresh = 5", "help = true", 'config = "d.toml"'),
    ):
        (tmp_path / "d.toml").write_text(f'input = "t.csv"\n{cut}\n')
        assert deit_batch("score", "--config", "d.toml", "--dry-run", cwd=tmp_path).returncode == 2, cut


def test_every_option_goes_by_its_long_name_in_files_and_variables() -> None:
    for command in main.commands.values():
        for param in command.params:
            if isinstance(param, click.Option):
                assert param.opts[-1] == f"--{str(param.name).replace('_', '-')}"


def test_an_output_that_is_a_folder_is_found_out_before_anything_is_scored(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").mkdir()
    (tmp_path / "f.npy.rows.jsonl").mkdir()
    for command in (["score", "--out", "p.jsonl", "--fresh"], ["embed", "--out", "f.npy"]):
        done = deit_batch(*command, "--input", EXAMPLES, "--model", "demo", cwd=tmp_path)
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1].endswith("is a folder; give the name of a file")
        assert len(list(tmp_path.iterdir())) == 2


def test_one_missing_folder_is_made_and_said(tmp_path: Path) -> None:
    assert deit_batch("score", EXAMPLES / "bag", "--model", "demo", "--out", "n/p.jsonl", cwd=tmp_path).returncode == 0
    for out, *command in (
        ("a/p.csv", "convert"),
        ("b/r.html", "report"),
        ("c/sorted", "sort", "--by", "copy"),
        ("d/e", "evaluate", "--input", str(EXAMPLES), "--predictions"),
    ):
        done = deit_batch(*command, "n/p.jsonl", "--out", out, cwd=tmp_path)
        assert (done.returncode, f"made the folder {out[0]}" in done.stderr) in ((0, True), (3, True)), done.stderr
        assert (tmp_path / out).exists()
        done = deit_batch(*command, "n/p.jsonl", "--out", f"x/{out}", cwd=tmp_path)
        assert (done.returncode, f"there is no folder x, nor {out[0]} in it" in done.stderr) == (2, True), done.stderr
        assert not (tmp_path / "x").exists()


def test_wrong_usage_is_short_and_the_error_comes_last(tmp_path: Path) -> None:
    many = [f"{number:05}.jpg" for number in range(5_000)]
    for command in (["score"], ["report", *many, "--out", "r.html"], ["compare", *many], ["score", "--bogus"]):
        done = deit_batch(*command, cwd=tmp_path)
        assert done.returncode == 2
        assert "Example" not in done.stderr
        assert len(done.stderr) < 700
        assert done.stderr.splitlines()[-1].startswith("Error: ")
    (tmp_path / "a.txt").write_text("")
    done = deit_batch("score", *["a.txt"] * 5_000, "--model", "demo", "--out", "p.jsonl", cwd=tmp_path)
    assert "a.txt and 4,999 others has no rows" in done.stderr


def test_an_output_that_would_be_the_input_or_has_no_folder_is_wrong_usage(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(f'"{EXAMPLES}/bag/00018.png"\n')
    (tmp_path / "link.jsonl").symlink_to("t.jsonl")
    for out in ("t.jsonl", "link.jsonl", "none/deeper/p.jsonl"):
        done = deit_batch("score", "--input", "t.jsonl", "--model", "demo", "--out", out, "--fresh", cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        assert ("would take the place of the input" in done.stderr) or ("none, nor deeper in it" in done.stderr)
    assert (tmp_path / "t.jsonl").read_text() == f'"{EXAMPLES}/bag/00018.png"\n'
    (tmp_path / "current.jsonl").symlink_to("real.jsonl")
    command = ["score", "--input", "t.jsonl", "--model", "demo", "--out", "current.jsonl"]
    assert deit_batch(*command, cwd=tmp_path).returncode == 0
    assert len(read_jsonl(tmp_path / "real.jsonl")) == 1
    assert (tmp_path / "current.jsonl").is_symlink()


def test_a_full_disk_behind_stdout_is_one_line(tmp_path: Path) -> None:
    with open("/dev/full", "wb") as full:
        command = [COMMAND, "score", "--input", str(EXAMPLES), "--model", "demo", "--out", "-"]
        done = subprocess.run(command, cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "deit-batch: stdout: can't be written: No space left on device\n"


def test_a_terminal_gets_a_bar_and_a_log_gets_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leader, follower = pty.openpty()
    command = [COMMAND, "score", "--input", str(EXAMPLES), "--model", "demo", "--out", "p.jsonl"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=follower) as process:
        os.close(follower)
        shown = b""
        try:
            while chunk := os.read(leader, 4096):
                shown += chunk
        except OSError:
            pass  # the other end is closed
        assert process.wait(60) == 0
    assert b"40/40" in shown
    assert b"images/s" in shown
    assert b"failed=0" in shown

    from deit_batch.system import progress

    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    arguments = [*command[1:-1], str(tmp_path / "q.jsonl")]
    result = CliRunner().invoke(main, arguments)
    assert re.search(r": [1-9] of 40 images, |: [1-3]\d of 40 images, ", result.stderr)
    assert " left, 0 failed" in result.stderr


def test_every_command_and_option_has_help_that_opens_with_an_example() -> None:
    for name, command in main.commands.items():
        shown = CliRunner().invoke(main, [name, "--help"]).stdout
        assert shown.startswith(f"Example:\n\n  deit-batch {name}")
        with click.Context(command, **command.context_settings) as context:
            for param in command.get_params(context):
                if isinstance(param, click.Option):
                    assert param.get_help_record(context)
                    assert param.opts[0] in shown
    assert "deit-batch score --input imgs/ --out preds.jsonl" in CliRunner().invoke(main, ["--help"]).stdout


def test_each_option_is_explained_in_sentences_that_stand_alone() -> None:
    for name, command in main.commands.items():
        with click.Context(command, **command.context_settings) as context:
            for param in command.get_params(context):
                if isinstance(param, click.Option):
                    said = f"{name} {param.opts[0]}: {param.help}"
                    assert re.fullmatch(r"([A-Z]|'[^']+').*(\.|\[default: .+\])", param.help or ""), said
                    assert len((param.help or "").split("[default:")[0].split()) >= 3, said


def test_the_list_of_commands_has_each_under_a_heading_with_its_whole_summary() -> None:
    shown = CliRunner().invoke(main, ["--help"], terminal_width=78).stdout  # Click's width for 80 columns
    titles = re.findall(r"^([A-Z].+):$", shown, re.MULTILINE)
    assert titles == ["Options", *COMMANDS]
    listed = shown.split(f"{titles[1]}:\n", 1)[1]
    found = re.findall(r"^  (\w+) +(.+)$", listed, re.MULTILINE)
    assert [name for name, _ in found] == list(main.commands)
    for name, summary in found:
        assert re.fullmatch(r"[A-Z].*[^.]\.", summary), f"{name}: {summary}"


def test_the_package_is_run_as_the_command() -> None:
    for arguments in (["--help"], ["--version"], ["merge", "--help"], ["score", "--none"]):
        command, module = (
            subprocess.run([*program, *arguments], capture_output=True, text=True, check=False)
            for program in ([COMMAND], [sys.executable, "-m", "deit_batch"])
        )
        assert (module.returncode, module.stdout, module.stderr) == (
            command.returncode,
            command.stdout,
            command.stderr,
        )
        assert "deit-batch" in module.stdout + module.stderr


def test_help_imports_nothing_heavy() -> None:
    probe = (
        "import sys; from click.testing import CliRunner; from deit_batch.cli import main\n"
        "assert CliRunner().invoke(main, ['score', '--help']).exit_code == 0\n"
        "heavy = {'torch', 'transformers', 'datasets', 'pyarrow', 'httpx2', 'huggingface_hub'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", probe], check=True)


@pytest.mark.parametrize("out", ["p.jsonl", "p.csv", "p.parquet"])
def test_the_last_line_names_the_first_that_failed_and_how_to_list_all(photos: Path, tmp_path: Path, out: str) -> None:
    for number in (7, 13, 21):
        (photos / f"{number:02}.jpg").write_bytes(b"broken")
    words: list[str | Path] = ["score", "--model", "demo", "--input", photos, "--out", out, "--quiet"]
    done = deit_batch(*words, cwd=tmp_path)
    assert done.returncode == 3
    line = done.stderr.splitlines()[-1]
    assert f"{photos}/07.jpg (DecodeError: not an image" in line
    assert f"{photos}/13.jpg (DecodeError: " in line
    assert "21.jpg" not in line
    assert "; --error-threshold allows what will never be readable; first " in line
    command = line.partition("all of them: ")[2]
    if out == "p.jsonl":
        listed = subprocess.run(command, shell=True, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
        assert [json.loads(text)["image"][-6:] for text in listed.splitlines()] == ["07.jpg", "13.jpg", "21.jpg"]
    else:
        assert command == f"deit-batch report {out} --out failures.html"


def test_a_reader_that_has_enough_is_no_fault(photos: Path) -> None:
    command = f"{COMMAND} score --model demo --input {photos} --batch-size 1 --out - | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == 1
    assert "written" not in done.stderr
    assert "Traceback" not in done.stderr


def test_a_gate_that_is_passed_while_images_failed_says_why_the_status_is_3(photos: Path, tmp_path: Path) -> None:
    (photos / "bag").mkdir()
    for path in list(photos.glob("*.jpg"))[:4]:
        path.rename(photos / "bag" / path.name)
    for path in photos.glob("*.jpg"):
        path.unlink()
    (photos / "bag" / "broken.jpg").write_bytes(b"broken")
    (photos / "coat").mkdir()
    words: list[str | Path] = ["evaluate", "--model", "demo", "--input", photos]
    words += ["--out", "e", "--fail-under", "accuracy=0"]
    done = deit_batch(*words, cwd=tmp_path)
    assert done.returncode == 3
    assert "every gate is passed; the status is 3 for 1 image without" in done.stderr
    assert "--error-threshold may allow" in done.stderr
    assert deit_batch(*words, "--error-threshold", "1", "--fresh", cwd=tmp_path).returncode == 0
