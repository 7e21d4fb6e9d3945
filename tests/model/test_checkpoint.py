"""From a model's name to a folder: the Hub's cache, no network, pickles, other recipes."""

from __future__ import annotations

import http.server
import json
import shutil
import threading
import time
from pathlib import Path

import pytest
from helpers import EXAMPLES, deit_batch, read_json

from deit_batch.errors import CheckpointError, UsageError
from deit_batch.model.checkpoint import find_checkpoint, find_recipe
from deit_batch.model.recipe import CARD_RECIPE

NAME = "somebody/tiny-deit"
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


def run_without_cache(tmp_path: Path, endpoint: str) -> tuple[float, str]:
    start = time.monotonic()
    done = deit_batch(
        "score", "--input", EXAMPLES, "--out", "p.jsonl", cwd=tmp_path,
        env={"HF_HOME": str(tmp_path / "empty"), "PATH": "/usr/bin:/bin", "HF_ENDPOINT": endpoint},
    )  # fmt: skip
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "p.jsonl").exists()
    return time.monotonic() - start, done.stderr


def test_without_network_and_cache_one_line_says_what_to_do(tmp_path: Path) -> None:
    _, message = run_without_cache(tmp_path, "http://127.0.0.1:1")
    assert "facebook/deit-base-patch16-224 is not on this machine" in message
    assert "deit-batch pull facebook/deit-base-patch16-224 --out DIR" in message
    assert "--model demo" in message


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
        _, message = run_without_cache(tmp_path, f"http://127.0.0.1:{httpd.server_port}")
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
        with pytest.raises(CheckpointError, match=r"names files that are not \.safetensors|can't be understood"):
            find_checkpoint(str(folder))
    index.write_text(json.dumps({"weight_map": {"a": "model-2.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"model-2.safetensors can't be read: No such file"):
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
