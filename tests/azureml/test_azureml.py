"""Azure ML's deployments, called as the service calls them."""

from __future__ import annotations

import ast
import base64
import gzip
import importlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import EXAMPLES, NOT_ASKED, counted
from PIL import Image

from deit_batch import score
from deit_batch.azureml import batch
from deit_batch.azureml.deployed import batch_options, deployed_options
from deit_batch.cli import main
from deit_batch.errors import CheckpointError, DeitBatchError, UsageError
from deit_batch.input.open import open_source
from deit_batch.model.checkpoint import find_checkpoint

REPOSITORY = EXAMPLES.parent
PICTURES = [str(path) for path in sorted(EXAMPLES.glob("*/*.png"))[:5]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registered model, in a folder of its own under the mounted one."""
    mounted = tmp_path_factory.mktemp("model")
    shutil.copytree(find_checkpoint("demo").folder, mounted / "deit-demo")
    return mounted


@pytest.fixture
def deployed(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZUREML_MODEL_DIR", str(model))
    monkeypatch.setenv("DEIT_BATCH_SCORE_TOP_K", "2")
    monkeypatch.setenv("DEIT_BATCH_SCORE_WORKERS", "0")
    monkeypatch.setattr(batch, "_deployed", None)
    batch.init()


def results(mini_batch: list[str]) -> list[dict[str, Any]]:
    lines = batch.run(mini_batch)
    assert not any("\n" in line for line in lines)
    return [json.loads(line) for line in lines]


def test_a_mini_batch_of_files_has_a_line_for_each(deployed: None, tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    (tmp_path / "list.txt").write_text("\n".join(PICTURES))
    expected = [record.predictions for record in score(tmp_path / "list.txt", model="demo", top_k=2, workers=0)]
    for _ in range(2):  # the model stays for the next mini-batch
        found = results([*PICTURES, str(tmp_path / "bad.jpg")])
        assert [line["image"] for line in found] == [*PICTURES, str(tmp_path / "bad.jpg")]
        assert [line["predictions"] for line in found[:5]] == expected
        assert found[5]["predictions"] == []
        assert found[5]["error"]["type"] == "DecodeError"
        assert all("index" not in line for line in found)


def test_grey_images_of_more_than_8_bits_are_said_in_the_log(
    deployed: None, tmp_path: Path, messages: list[str]
) -> None:
    Image.new("I;16", (9, 9), 300).save(tmp_path / "deep.png")
    assert len(results([str(tmp_path / "deep.png")])) == 1
    assert [text for text in messages if text.startswith("1 image is grey of more than 8 bits")]


def test_a_csv_of_base64_has_a_line_for_each_row(deployed: None, tmp_path: Path) -> None:
    path = tmp_path / "images.csv"
    rows = [base64.b64encode(Path(picture).read_bytes()).decode() for picture in PICTURES]
    path.write_text("image\n" + "\n".join(rows) + "\n")
    (tmp_path / "empty.csv").write_text("nothing\n1\n")
    *found, failed = results([str(path), str(tmp_path / "empty.csv")])
    assert [(line["file"], line["row"], line["image"]) for line in found] == [(str(path), n, None) for n in range(5)]
    alone = results(PICTURES)
    assert [line["predictions"] for line in found] == [line["predictions"] for line in alone]
    assert failed["file"] == str(tmp_path / "empty.csv")
    assert "no column looks like the image" in failed["error"]["message"]


def test_the_csv_that_the_cards_batch_sample_reads(
    deployed: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, messages: list[str]
) -> None:
    monkeypatch.setenv("DEIT_BATCH_SCORE_FORMAT", "csv")
    assert batch._deployed is not None
    monkeypatch.setattr(batch, "_deployed", replace(batch._deployed, format=batch_options()[1]))
    rows = [base64.b64encode(Path(picture).read_bytes()).decode() for picture in PICTURES]
    (tmp_path / "images.csv").write_text("image\n" + "\n".join([*rows, "broken"]) + "\n")
    lines = batch.run([*PICTURES, str(tmp_path / "images.csv")])
    (tmp_path / "predictions.csv").write_text("".join(f"{line}\n" for line in lines))
    names = ["row_number_per_file", "preds", "labels", "file_name"]
    pandas: Any = importlib.import_module("pandas")  # which has no types
    table = pandas.read_csv(tmp_path / "predictions.csv", header=None, names=names)
    (tmp_path / "list.txt").write_text("\n".join(PICTURES))
    expected = [record.predictions for record in score(tmp_path / "list.txt", model="demo", top_k=2, workers=0)]
    assert [*table["file_name"]] == [*PICTURES, *[str(tmp_path / "images.csv")] * 6]
    assert [*table["row_number_per_file"]] == [0] * 5 + [0, 1, 2, 3, 4, 5]
    for read in (json.loads, ast.literal_eval):
        labels, scores = (table[name].map(read) for name in ("labels", "preds"))
        found = [
            [{"label": label, "score": score} for label, score in zip(*row, strict=True)]
            for row in zip(labels, scores, strict=True)
        ]
        assert found == [*expected, *expected, []]
    assert messages[-1] == "of this mini-batch, 1 of 11 images got no labels"
    monkeypatch.setenv("DEIT_BATCH_SCORE_FORMAT", "parquet")
    with pytest.raises(UsageError, match="gives jsonl or csv, not parquet"):
        batch_options()


def test_a_mini_batch_of_which_nothing_can_be_scored_is_the_services_to_try_again(deployed: None) -> None:
    with pytest.raises(DeitBatchError, match=r"nothing of this mini-batch of 2 could be read: "):
        batch.run(["/gone/a.jpg", "/gone/b.jpg"])
    assert batch.run([]) == []


def test_tables_that_cannot_be_read_are_the_services_to_try_again(deployed: None, tmp_path: Path) -> None:
    """Alone, or with rows that are malformed; beside what can be read, they are a line each."""
    for ending in ("csv", "tsv", "jsonl", "parquet", "csv.gz"):
        (tmp_path / f"folder.{ending}").mkdir()
        for dead in (f"/gone/a.{ending}", f"{tmp_path}/folder.{ending}/b.{ending}"):
            with pytest.raises(DeitBatchError, match=r"nothing of this mini-batch of 1 could be read: .*No such file"):
                batch.run([dead])
    (tmp_path / "rows.csv").write_text("image\n/gone/a.png\n/gone/b.png,1\n")
    with pytest.raises(DeitBatchError, match="nothing of this mini-batch of 3 could be read: "):
        batch.run([str(tmp_path / "rows.csv"), "/gone/c.csv"])
    (tmp_path / "damaged.csv.gz").write_bytes(b"no gzip")
    *found, gone, damaged = results([*PICTURES, "/gone/c.csv", str(tmp_path / "damaged.csv.gz")])
    assert all(line["predictions"] for line in found)
    assert (gone["file"], gone["error"]["type"]) == ("/gone/c.csv", "FetchError")
    assert damaged["error"]["type"] == "RowError"


def test_a_table_that_breaks_off_is_the_services_to_try_again(deployed: None, tmp_path: Path) -> None:
    """As of a mount that dies: what is missing is known to nobody. A terminal whose other side is closed gives an error
    behind what was written."""
    master, slave = os.openpty()
    os.write(slave, "".join(f"{picture}\n" for picture in PICTURES).encode())
    os.close(slave)
    with open(master, "rb") as stream:
        rows = batch.rows_of("t.txt", open_source("-", stdin=stream).references)
        assert [next(rows).keep["row"] for _ in PICTURES] == list(range(len(PICTURES)))
        with pytest.raises(DeitBatchError, match=r"can't be read past line 5: .*Input/output error"):
            next(rows)
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(f'{{"image": "{PICTURES[0]}"}}\n'.encode() * 9)[:-9])
    *found, end = results([str(tmp_path / "cut.jsonl.gz")])
    assert {len(line["predictions"]) for line in found} <= {2}
    assert (end["file"], end["error"]["type"]) == (str(tmp_path / "cut.jsonl.gz"), "RowError")


def test_a_bad_image_alone_is_a_line(deployed: None, tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    (line,) = results([str(tmp_path / "bad.jpg")])
    assert line["error"]["type"] == "DecodeError"


def test_an_option_that_a_deployment_cannot_heed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LIMIT", "SHARD", "FORMAT", "ERROR_THRESHOLD"):
        with monkeypatch.context() as patched:
            value = {"SHARD": "0/2", "FORMAT": "csv"}.get(name, "1")
            patched.setenv(f"DEIT_BATCH_SCORE_{name}", value)
            with pytest.raises(UsageError, match=f"DEIT_BATCH_SCORE_{name}: a deployment can't heed"):
                deployed_options()


def test_the_mount_of_a_model_is_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With or without the folder's name; what else may be in it is in tests/model/test_place.py."""
    monkeypatch.setenv("AZUREML_MODEL_DIR", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"is no checkpoint: there is no .*config\.json"):
        find_checkpoint(deployed_options().model)
    shutil.copytree(find_checkpoint("demo").folder, tmp_path / "m")
    assert find_checkpoint(deployed_options().model).digest == find_checkpoint("demo").digest
    shutil.copytree(tmp_path / "m", tmp_path / "n")
    with pytest.raises(CheckpointError, match="holds several checkpoints"):
        find_checkpoint(deployed_options().model)


@pytest.fixture(scope="module")
def endpoint(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The service's own server with the deployment's script; its address."""
    log = tmp_path_factory.mktemp("online") / "log"
    script = REPOSITORY / "deploy" / "azureml" / "code" / "online.py"
    variables = {"AZUREML_MODEL_DIR": str(model), "DEIT_BATCH_SCORE_TOP_K": "2", "DEIT_BATCH_SCORE_WORKERS": "1"}
    variables["GUNICORN_CMD_ARGS"] = "--graceful-timeout=1"  # or it ends half a minute after SIGTERM
    command = [sys.executable, "-m", "azureml_inference_server_http", "--entry_script", str(script), "--port"]
    port = free_port()
    environment = os.environ | counted() | variables
    with (
        open(log, "wb") as output,
        subprocess.Popen(
            [*command, str(port)], env=environment, stdout=output, stderr=output, start_new_session=True
        ) as process,
    ):
        try:
            wait_for_server(f"http://127.0.0.1:{port}", process, log)
            yield f"http://127.0.0.1:{port}/score"
        finally:
            os.killpg(process.pid, signal.SIGTERM)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def wait_for_server(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(600):
        assert process.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(address, timeout=5).close()
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise AssertionError(log.read_text())


def post(address: str, body: bytes) -> tuple[int, Any]:
    request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_an_online_deployment_answers_as_the_card_says(endpoint: str, tmp_path: Path) -> None:
    images = [base64.b64encode(Path(picture).read_bytes()).decode() for picture in PICTURES]
    (tmp_path / "list.txt").write_text("\n".join(PICTURES))
    expected = [record.predictions for record in score(tmp_path / "list.txt", model="demo", top_k=2, workers=0)]
    assert post(endpoint, json.dumps({"input_data": images}).encode()) == (200, expected)
    table = {"columns": ["image"], "index": [*range(len(images))], "data": images}  # as the card's sample sends it
    assert post(endpoint, json.dumps({"input_data": table}).encode()) == (200, expected)
    best = [predictions[:1] for predictions in expected]
    for data in (images, table):
        asked = json.dumps({"input_data": data, "params": {"top_k": 1}})
        assert post(endpoint, asked.encode()) == (200, best)
        (tmp_path / "r.json").write_text(asked)
        assert [record.predictions for record in score(tmp_path / "r.json", model="demo", workers=0)] == best


def test_an_online_deployment_reports_a_bad_image_in_its_place_and_reads_no_files(endpoint: str) -> None:
    image = base64.b64encode(Path(PICTURES[0]).read_bytes()).decode()
    status, answers = post(endpoint, json.dumps({"input_data": [PICTURES[0], image, 7, "http://127.0.0.1/a"]}).encode())
    assert status == 200
    types = [answer["error"]["type"] for answer in answers if "error" in answer]
    assert types == ["RowError", "RowError", "FetchError"]  # a path is no base64
    assert len(answers[1]) == 2


@pytest.mark.parametrize(
    "body",
    [
        b"no JSON",
        b"[1]",
        b'{"input_data": 3}',
        b"{}",
        *(f'{{"input_data": [], {more}}}'.encode() for more, _ in NOT_ASKED),
    ],
)
def test_what_is_no_request_is_answered_with_400_and_one_sentence(endpoint: str, body: bytes) -> None:
    status, answer = post(endpoint, body)
    assert status == 400
    assert answer["detail"].startswith('not a request of the form {"input_data"')
    assert "\n" not in answer["detail"]


def test_the_deployments_name_what_is_there() -> None:
    folder = REPOSITORY / "deploy" / "azureml"
    for kind in ("batch", "online"):
        text = (folder / f"{kind}-deployment.yml").read_text()
        deployment = yaml.safe_load(text)
        assert (folder / "code" / deployment["code_configuration"]["scoring_script"]).exists()
        assert (folder / deployment["environment"]["conda_file"]).exists()
        names = [name for name in deployment["environment_variables"] if name.startswith("DEIT_BATCH")]
        options = {f"DEIT_BATCH_SCORE_{str(param.name).upper()}" for param in main.commands["score"].params}
        assert names
        assert set(names) <= options
