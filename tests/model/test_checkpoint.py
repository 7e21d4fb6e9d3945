"""From a model's name to a folder: the Hub's cache, no network, pickles, other recipes."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import pty
import re
import shutil
import subprocess
import tempfile
import termios
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from helpers import COMMAND, EXAMPLES, deit_batch, read_json
from hypothesis import given
from hypothesis import strategies as st

from deit_batch.errors import CheckpointError, DeitBatchError, UsageError
from deit_batch.model.checkpoint import find_checkpoint, find_recipe
from deit_batch.model.hub import snapshot
from deit_batch.model.recipe import CARD_RECIPE
from deit_batch.system.regular_file import MOST_SETTINGS_BYTES

NAME = "somebody/tiny-deit"
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 346293852\n"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(vit: Path, tmp_path: Path) -> Path:
    """A Hub cache that holds one model, as `hf download` leaves it."""
    home = tmp_path / "hf"
    repository = home / "hub" / f"models--{NAME.replace('/', '--')}"
    shutil.copytree(vit, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return home


@pytest.mark.parametrize("revision", [None, "main", COMMIT])
def test_a_cached_model_needs_no_network_and_its_commit_is_recorded(
    cache: Path, tmp_path: Path, revision: str | None
) -> None:
    more = ["--revision", revision] if revision else ["--image-processor", NAME]
    done = deit_batch(
        "score", "--input", EXAMPLES, "--model", NAME, "--out", "p.jsonl", "--limit", "3", *more, cwd=tmp_path,
        env={"HF_HOME": str(cache), "PATH": "/usr/bin:/bin", "HF_ENDPOINT": "http://127.0.0.1:1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert read_json(tmp_path / "p.jsonl.run.json")["settings"]["commit"] == COMMIT


def test_a_dry_run_fetches_nothing_and_says_what_is_not_here(cache: Path, tmp_path: Path) -> None:
    def said() -> str:
        env = {**os.environ, "HF_HOME": str(cache), "HF_ENDPOINT": "http://127.0.0.1:1"}
        done = deit_batch("score", "--input", EXAMPLES, "--model", NAME, "--dry-run", cwd=tmp_path, env=env)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert f"model: {NAME}, in the form of transformers, commit {COMMIT}: ViTForImageClassification" in said()
    (weights,) = cache.rglob("*.safetensors")
    weights.unlink()  # as when only its image processor was used
    assert f"model: {NAME}: not on this machine, or not all of it" in said()


def run_without_cache(tmp_path: Path, endpoint: str, status: int = 1) -> tuple[float, str]:
    start = time.monotonic()
    done = deit_batch(
        "score", "--input", EXAMPLES, "--out", "p.jsonl", cwd=tmp_path,
        env={"HF_HOME": str(tmp_path / "empty"), "PATH": "/usr/bin:/bin", "HF_ENDPOINT": endpoint},
    )  # fmt: skip
    assert done.returncode == status
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "p.jsonl").exists()
    return time.monotonic() - start, done.stderr


def seen_on_a_terminal(*args: str, **options: Any) -> str:
    """What a command shows there that succeeds."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(ours, (24, 80))  # without a size, bars are not drawn
    with (
        open(ours, "rb", buffering=0) as shown,
        subprocess.Popen([COMMAND, *args], stdout=subprocess.DEVNULL, stderr=theirs, **options) as process,
    ):
        os.close(theirs)
        text = b""
        with suppress(OSError):  # Linux's way to say that the other end is closed
            while part := shown.read(2**16):
                text += part
    assert process.returncode == 0, text
    return text.decode()


def test_whoever_waits_is_told_that_the_model_loads(tmp_path: Path) -> None:
    run = ("score", "--input", str(EXAMPLES), "--limit", "1", "--model", "demo", "--out")
    assert seen_on_a_terminal(*run, "p.jsonl", cwd=tmp_path).startswith("deit-batch: loading demo…")
    assert seen_on_a_terminal(*run, "q.jsonl", "--quiet", cwd=tmp_path) == ""
    assert "loading" not in deit_batch(*run, "r.jsonl", cwd=tmp_path).stderr  # a log has what comes of it


def test_whoever_waits_for_a_download_sees_the_hubs_bars(vit: Path, tmp_path: Path) -> None:
    class Hub(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if "/tree/" in self.path:
                paths = [{"type": "file", "path": path.name, "size": path.stat().st_size} for path in vit.iterdir()]
                body = json.dumps([{**each, "oid": COMMIT} for each in paths]).encode()
            elif self.path.startswith("/api/"):
                files = [{"rfilename": path.name} for path in vit.iterdir()]
                body = json.dumps({"id": NAME, "sha": COMMIT, "siblings": files}).encode()
            else:
                body = (vit / self.path.rpartition("/")[2]).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815 - the base class's name

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        env = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{httpd.server_port}"}
        env.pop("HF_HUB_OFFLINE", None)
        told = seen_on_a_terminal("pull", NAME, env={**env, "HF_HOME": str(tmp_path / "a")}, cwd=tmp_path)
        done = deit_batch("pull", NAME, env={**env, "HF_HOME": str(tmp_path / "b")}, cwd=tmp_path)
        httpd.shutdown()
    assert f"loading {NAME}…" in told
    assert "100%" in told
    assert done.returncode == 0, done.stderr
    assert "%" not in done.stderr


def test_without_network_and_cache_one_line_says_what_to_do(tmp_path: Path) -> None:
    _, message = run_without_cache(tmp_path, "http://127.0.0.1:1")
    assert "facebook/deit-base-patch16-224 is not on this machine" in message
    assert "deit-batch pull facebook/deit-base-patch16-224 --out DIR" in message
    assert "--model demo" in message


@pytest.mark.parametrize(
    ("name", "status", "told"),
    [
        ("model", 2, "no folder model is here, and no model on the Hub has a name without an owner"),
        ("models/deit", 1, "no folder models/deit is here; the model models/deit is not on this machine"),
    ],
)
def test_a_folder_that_has_gone_is_told_from_a_model_of_the_hub(name: str, status: int, told: str) -> None:
    with pytest.raises(DeitBatchError, match=re.escape(told)) as error:
        snapshot(name, None, ["config.json"], fetch=False)
    assert error.value.exit_status == status


def test_a_hub_that_never_answers_is_given_up(tmp_path: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        seconds, message = run_without_cache(tmp_path, f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert "--model demo" in message
    assert seconds < 40  # 8 on an idle machine; with huggingface_hub's own patience it would be minutes


def test_what_the_hub_refuses_is_said(tmp_path: Path) -> None:
    class Refuses(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refuses) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        _, message = run_without_cache(tmp_path, f"http://127.0.0.1:{httpd.server_port}", status=2)
        httpd.shutdown()
    assert "no such model on the Hub, or it is private" in message


def test_a_name_that_can_be_neither_folder_nor_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no folder \./none"):
        find_checkpoint("./none/at/all")
    with pytest.raises(UsageError, match="--revision is for models on the Hub"):
        find_checkpoint("demo", revision="main")
    with pytest.raises(CheckpointError, match="is no checkpoint"):
        find_checkpoint(str(tmp_path))


def test_pickled_weights_are_loaded_only_if_allowed(vit: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    folder = shutil.copytree(vit, tmp_path / "pickled")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="add --allow-pickle"):
        find_checkpoint(str(folder))
    command = ["score", "--input", str(EXAMPLES), "--limit", "2", "--out", "-", "--model"]
    pickled = deit_batch(*command, str(folder), "--allow-pickle", cwd=tmp_path)
    safe = deit_batch(*command, str(vit), cwd=tmp_path)
    assert pickled.stdout == safe.stdout != ""


def test_an_index_cannot_bring_in_pickles(vit: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(vit, tmp_path / "sharded")
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
    assert find_checkpoint(str(folder)).digest == find_checkpoint(str(vit)).digest
    for wrong in ("weights.bin", "../model.safetensors", 5):
        index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors", "b": wrong}}))
        with pytest.raises(CheckpointError, match=r"names files that are not \.safetensors|no such file beside it"):
            find_checkpoint(str(folder))
    index.write_text(json.dumps({"weight_map": {"a": "model-2.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"names .model-2.safetensors., and there is no such file beside it"):
        find_checkpoint(str(folder))


def test_a_folder_without_weights_or_with_a_broken_config(vit: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(vit, tmp_path / "broken")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="has no weights"):
        find_checkpoint(str(folder))
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="can't be read"):
        find_checkpoint(str(folder))
    (folder / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="holds no JSON object"):
        find_checkpoint(str(folder))


def test_the_digest_changes_with_the_weights(vit: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(vit, tmp_path / "copy")
    assert find_checkpoint(str(folder)).digest == find_checkpoint(str(vit)).digest
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    assert find_checkpoint(str(folder)).digest != find_checkpoint(str(vit)).digest


def test_recipes_from_elsewhere(vit: Path, tmp_path: Path) -> None:
    checkpoint = find_checkpoint(str(vit))
    file = tmp_path / "recipe.json"
    file.write_text('{"size": {"shortest_edge": 40}, "do_center_crop": true, "crop_size": 32}')
    recipe = find_recipe(checkpoint, str(file))
    assert (recipe.resize, recipe.crop) == (40, (32, 32))
    assert find_recipe(checkpoint, str(vit)) == find_recipe(checkpoint, None)
    assert find_recipe(find_checkpoint("demo"), "card") == CARD_RECIPE
    for wrong in ("none.json", "./none", str(tmp_path)):
        with pytest.raises(CheckpointError):
            find_recipe(checkpoint, wrong)
    bare = shutil.copytree(vit, tmp_path / "bare")
    (bare / "preprocessor_config.json").unlink()
    with pytest.raises(CheckpointError, match="--image-processor"):
        find_recipe(find_checkpoint(str(bare)), None)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)
CONFIG = st.sampled_from([*find_checkpoint("demo").geometry.__slots__, "id2label", "architectures", "model_type"])
RECIPE = st.sampled_from(
    "size crop_size do_resize do_center_crop resample rescale_factor image_mean image_std image_processor_type".split()
)
PYTHON = re.compile(r"Error|object|Traceback|argument|unpack|codec|attribute")
"""What a person should not have to read."""


@given(config=st.dictionaries(CONFIG, JSON, max_size=3), recipe=st.dictionaries(RECIPE, JSON, max_size=3))
def test_whatever_its_files_say_a_checkpoint_is_taken_or_refused_in_a_sentence(
    config: dict[str, Any], recipe: dict[str, Any], vit: Path
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(shutil.copytree(vit, Path(name) / "checkpoint"))
        for file, changes in (("config.json", config), ("preprocessor_config.json", recipe)):
            (folder / file).write_text(json.dumps(json.loads((folder / file).read_bytes()) | changes))
        refused: list[CheckpointError] = []
        try:
            find_recipe(find_checkpoint(str(folder)), None)
        except CheckpointError as error:
            refused.append(error)
        assert [str(error) for error in refused if PYTHON.search(re.sub(r"'.*?'", "", str(error)))] == []
        assert {error.exit_status for error in refused} <= {2}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"[" * 200_000, "nested too deeply"),
        (b'{"hidden_size":' + b"9" * 5000 + b"}", "thousands of digits"),
        (b'{"a":"\xff"}', "not UTF-8"),
        (b"", "not JSON"),
        (b" " * (MOST_SETTINGS_BYTES + 1), "larger than"),
        (LFS_POINTER, "git lfs pull"),
    ],
)
@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json"])
def test_a_file_of_settings_that_is_none(vit: Path, tmp_path: Path, file: str, data: bytes, message: str) -> None:
    folder = shutil.copytree(vit, tmp_path / "broken")
    (folder / file).write_bytes(data)
    with pytest.raises(CheckpointError, match=rf"{file} can't be read: .*{message}"):
        find_recipe(find_checkpoint(str(folder)), None)


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json", "model.safetensors"])
def test_pipes_and_devices_are_not_read(vit: Path, tmp_path: Path, file: str) -> None:
    folder = shutil.copytree(vit, tmp_path / "piped")
    for make in (os.mkfifo, lambda path: os.symlink("/dev/zero", path), os.mkdir):
        (folder / file).unlink()
        make(folder / file)
        done = deit_batch("score", "--input", EXAMPLES, "--model", folder, "--out", "p.jsonl", cwd=tmp_path)
        assert done.returncode == 2
        assert re.search("not a regular file|has no weights|has no preprocessor_config", done.stderr)
        (folder / file).rename(tmp_path / f"{file}-{make.__name__}")
        shutil.copyfile(vit / file, folder / file)


@pytest.mark.parametrize("weights", [{}, [], {"a": None}, {"a": ["model-1.safetensors"]}, {"a": "m\0.safetensors"}])
def test_an_index_that_names_no_files(vit: Path, tmp_path: Path, weights: object) -> None:
    folder = shutil.copytree(vit, tmp_path / "sharded")
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))
    with pytest.raises(CheckpointError, match=r"index.json names"):
        find_checkpoint(str(folder))


@pytest.mark.parametrize("size", [{"shortest_edge": 20_000}, {"height": 20_000, "width": 20_000}])
def test_no_image_is_made_far_larger_than_the_model_takes(vit: Path, tmp_path: Path, size: dict[str, int]) -> None:
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps({"size": size, "do_center_crop": True, "crop_size": 32}))
    with pytest.raises(CheckpointError, match=r"makes images of 20000x20000 pixels to keep 32x32"):
        find_recipe(find_checkpoint(str(vit)), str(recipe))


def test_a_pointer_of_git_lfs_is_named(vit: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(vit, tmp_path / "pointer")
    (folder / "model.safetensors").write_bytes(LFS_POINTER)
    with pytest.raises(CheckpointError, match=r"model\.safetensors can't be loaded: .* run 'git lfs pull'"):
        find_checkpoint(str(folder))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module."])
def test_names_that_wrappers_have_changed_are_read(vit: Path, tmp_path: Path, prefix: str) -> None:
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(vit, tmp_path / "wrapped")
    weights = {prefix + name: tensor for name, tensor in load_file(vit / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors")
    command = ["score", "--input", str(EXAMPLES), "--limit", "2", "--out", "-", "--model"]
    wrapped = deit_batch(*command, folder, cwd=tmp_path)
    assert wrapped.stdout == deit_batch(*command, vit, cwd=tmp_path).stdout != ""
    name = next(iter(weights))
    save_file(weights | {name.removeprefix(prefix): weights[name].clone()}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="twice"):
        find_checkpoint(str(folder))


def test_an_adapter_without_its_base_is_named(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "facebook/deit-tiny-patch16-224"}')
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"is an adapter of facebook/deit-tiny-patch16-224, and can't be merged"):
        find_checkpoint(str(tmp_path))


def test_quantised_weights_are_refused(vit: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(vit, tmp_path / "quantised")
    weights = load_file(vit / "model.safetensors")
    save_file(
        weights | {"classifier.weight": weights["classifier.weight"].to(torch.int8)}, folder / "model.safetensors"
    )
    with pytest.raises(CheckpointError, match=r"1 of its weights are quantised or whole numbers, classifier\.weight"):
        find_checkpoint(str(folder))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "has a quantization_config"),
        ({"dtype": "float8_e4m3fn"}, "has dtype 'float8_e4m3fn', which is not known here"),
        ({"torch_dtype": 16}, "has torch_dtype 16, which is not known here"),
    ],
)
def test_numbers_that_are_not_meant_as_they_are_are_refused(
    changes: dict[str, Any], message: str, vit: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(vit, tmp_path / "odd"))
    config = json.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(CheckpointError, match=message):
        find_checkpoint(str(folder))
