"""Small real things that the tests are given: checkpoints, pictures, a web server, a store."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import other_classes
import pytest
import release
import torch
import transformers
from faulty_store import Bucket, misbehaving, s3_environment, serve_s3
from helpers import ENVIRONMENT, EXAMPLES, LABELS, PROCESSORS, MakeCheckpoint, jpeg, warm, write_all_kinds
from misbehaving import Server, serve

from deit_batch.system.signals import HANGUP

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# A slow machine is no fault of the code.
hypothesis.settings.register_profile("untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])


hypothesis.settings.load_profile("untimed")

# Under nohup, or in a script's background, they are ignored, and would be so in each process that a test starts.
for _signum in (signal.SIGINT, *HANGUP):
    if signal.getsignal(_signum) is signal.SIG_IGN:
        signal.signal(_signum, signal.default_int_handler if _signum == signal.SIGINT else signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def _warm_process() -> Iterator[None]:
    """It begins with what the imports of all tests have set, as those of Ray do: where a variable differs, a command is
    started anew."""
    ENVIRONMENT.update(os.environ)
    yield
    if warm.cache_info().currsize:
        warm().end()


@pytest.fixture(scope="session")
def make_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> MakeCheckpoint:
    """A small checkpoint with random weights, of one of the three classes, whose scores differ clearly."""

    def make(architecture: str = "ViTForImageClassification", **settings: Any) -> Path:
        torch.manual_seed(0)
        config_class = getattr(transformers, architecture).config_class
        geometry = {
            "image_size": 32,
            "patch_size": 8,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "initializer_range": 0.5,
            "id2label": dict(enumerate(LABELS)),
            "label2id": {label: number for number, label in enumerate(LABELS)},
        }
        model = getattr(transformers, architecture)(config_class(**{**geometry, **settings}))
        folder = tmp_path_factory.mktemp("checkpoint")
        model.save_pretrained(folder)
        (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSORS[architecture]))
        return folder

    return make


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A checkpoint of a kind of other_classes.py, with settings of its config."""
    done: dict[str, Path] = {}

    def checkpoint(kind: str, **settings: Any) -> Path:
        name = f"{kind}{settings}"
        if name not in done:
            done[name] = other_classes.make(kind, tmp_path_factory.mktemp(kind), **settings)
        return done[name]

    return checkpoint


@pytest.fixture(scope="session", params=list(PROCESSORS))
def checkpoint(request: pytest.FixtureRequest, make_checkpoint: MakeCheckpoint) -> Path:
    """Each of the three checkpoint classes in turn."""
    return make_checkpoint(request.param)


@pytest.fixture(scope="session")
def vit(make_checkpoint: MakeCheckpoint) -> Path:
    return make_checkpoint("ViTForImageClassification")


@pytest.fixture(scope="session")
def all_kinds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("all-kinds")
    write_all_kinds(folder)
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of 40 different JPEGs."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(40):
        (folder / f"{number:02}.jpg").write_bytes(jpeg(number))
    return folder


@pytest.fixture
def web(photos: Path) -> Iterator[Server]:
    """A web server on loopback that serves the photos, and misbehaves on request."""
    with serve(photos) as server:
        yield server


@pytest.fixture
def server(web: Server) -> str:
    """Its address."""
    return web.address


@pytest.fixture(scope="session")
def s3_server() -> Iterator[int]:
    """The port of a real S3 server on loopback."""
    with serve_s3() as port:
        yield port


@pytest.fixture
def bucket(s3_server: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """A bucket on it, behind a proxy that misbehaves on request, where the environment says that S3 is."""
    import fsspec

    with misbehaving(s3_server) as proxy:
        for name, value in {**s3_environment(proxy.address), "XDG_CACHE_HOME": str(tmp_path / "cache")}.items():
            monkeypatch.setenv(name, value)
        fsspec.get_filesystem_class("s3").clear_instance_cache()  # the environment has changed under it
        yield Bucket(proxy, f"bucket-{uuid.uuid4().hex}")  # a port may come again


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Sdist and wheel of the working copy."""
    if not (EXAMPLES.parent / ".git").exists():
        pytest.skip("this is no checkout of the repository")
    return release.build(tmp_path_factory.mktemp("built"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's chromium, driven by playwright."""
    found = shutil.which("chromium")
    if found is None:
        pytest.skip("no browser: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module", autouse=True)
def _environment_as_before() -> Iterator[None]:
    """What a library, such as Ray, has left there would keep later commands from the warm process (warm.py)."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(autouse=True)
def _logging_as_imported() -> None:
    """What a command that ran in this process, in another test or in a fixture, has set up is not for this test."""
    logger = logging.getLogger("deit_batch")
    logger.handlers, logger.propagate = [], True
    logger.setLevel(logging.NOTSET)


@pytest.fixture
def messages() -> Iterator[list[str]]:
    """What is logged, as it comes."""
    logged: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: logged.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("deit_batch")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield logged
    logger.setLevel(level)
    logger.removeHandler(handler)
