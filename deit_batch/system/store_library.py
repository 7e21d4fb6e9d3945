"""The library of each kind of store, as fsspec knows it: which it is, how often it tries by itself, and that it keeps
quiet."""

from __future__ import annotations

import logging
import mimetypes
import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from deit_batch.system.extras import needing

_LIBRARIES = {
    "s3": ("s3fs", "s3"),
    "gs": ("gcsfs", "gcs"),
    "gcs": ("gcsfs", "gcs"),
    "abfs": ("adlfs", "azure"),
    "abfss": ("adlfs", "azure"),
    "az": ("adlfs", "azure"),
    "hf": ("huggingface_hub", ""),
}
"""Of each scheme, the library that fsspec finds it in, and the extra that brings it. No other scheme is opened: fsspec
has some that read local files, or whatever host an address names."""

_TALKERS = ("s3fs", "aiobotocore", "botocore", "gcsfs", "google", "adlfs", "azure", "fsspec")
"""The loggers of these libraries and of those that they stand on."""


GOOGLES_CHUNK = 32 * 2**20
"""Bytes of an upload that are sent at a time; a multiple of 256 KiB."""


def is_known(scheme: str) -> bool:
    return scheme in _LIBRARIES


def name_of_library(scheme: str) -> str:
    return _LIBRARIES[scheme][0]


def import_library(scheme: str) -> None:
    """Raises UsageError if it is not installed."""
    # Otherwise gcsfs asks another service of Google's, by gRPC, of what kind each bucket is, before it reads from it.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    library, extra = _LIBRARIES[scheme]
    with needing(extra):
        import_module(library)


def open_file_system(scheme: str, *, patient: bool, connections: int) -> Any:
    """fsspec's. `patient`: the library tries again by itself, for a minute or so; otherwise not at all, but for
    Google's, which can't be kept from it. `connections`: open at a time."""
    import fsspec

    import_library(scheme)
    _silence()
    options: dict[str, Any] = {}
    if scheme == "s3":
        own = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
        options["config_kwargs"] = {"max_pool_connections": connections, **own}
        if not patient:
            options["config_kwargs"]["retries"] = {"total_max_attempts": 1}
    # fsspec keeps the instance of a process and thread, for a new one takes a while. Many threads are to share one.
    files: Any = fsspec.filesystem(scheme, skip_instance_cache=not patient, **options)
    match name_of_library(scheme):
        case "s3fs" if not patient:
            files.retries = 1
        case "adlfs":
            _set_tries_of_azure(files.service_client, patient)
    return files


def _silence() -> None:
    """What they log is in the error that they raise, too. Whoever has set up logging still has it."""
    for log in map(logging.getLogger, _TALKERS):
        if not log.handlers:
            log.addHandler(logging.NullHandler())


def _set_tries_of_azure(client: Any, patient: bool) -> None:
    """adlfs has no way to say it: Azure's client would wait for 12 seconds and more before another try, which is longer
    than an object may take."""
    policy = client._config.retry_policy
    policy.initial_backoff, policy.increment_base, policy.random_jitter_range = 1, 2, 1
    if not patient:
        policy.total_retries = 0


def begin_upload_to_google(files: Any, bucket: str, key: str) -> str:
    """The URL at which it would go on. It is in nobody's way, and gone after a week."""
    from fsspec.asyn import sync
    from gcsfs.core import initiate_upload

    location: str = sync(files.loop, initiate_upload, files, bucket, key)
    return location


def upload_to_google(
    files: Any, source: Path, bucket: str, key: str, tried: Callable[[Callable[[], Any]], Any]
) -> None:
    """Chunk by chunk, each of them `tried` until it is taken: gcsfs, left alone, would begin again with the first. The
    object appears with the last."""
    from fsspec.asyn import sync
    from gcsfs.core import upload_chunk

    size = source.stat().st_size
    location = tried(partial(begin_upload_to_google, files, bucket, key))
    kind = mimetypes.guess_type(source)[0] or "application/octet-stream"
    with open(source, "rb") as opened:
        for offset in range(0, size, GOOGLES_CHUNK):
            chunk = opened.read(GOOGLES_CHUNK)
            tried(partial(sync, files.loop, upload_chunk, files, location, chunk, offset, size, kind))


def blobs_in_folder(files: Any, container: str, prefix: str) -> list[Any]:
    """The properties of the blobs and, by names that end in a slash, the folders whose names go on from the prefix."""
    from fsspec.asyn import sync

    async def ask() -> list[Any]:
        async with files.service_client.get_container_client(container) as client:
            return [blob async for blob in client.walk_blobs(prefix or None, include=["metadata"])]

    found: list[Any] = sync(files.loop, ask)
    return found


def ask_azure_to_write(files: Any, container: str, blob: str) -> None:
    """Writes nothing: no blob has this ETag. Raises as an upload would that may not be."""
    from azure.core import MatchConditions
    from azure.core.exceptions import ResourceModifiedError
    from fsspec.asyn import sync

    async def ask() -> None:
        condition = {"etag": '"none"', "match_condition": MatchConditions.IfNotModified}
        async with files.service_client.get_blob_client(container, blob) as client:
            await client.upload_blob(b"", overwrite=True, **condition)

    with suppress(ResourceModifiedError):
        sync(files.loop, ask)
