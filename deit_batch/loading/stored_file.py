"""The bytes of an object on a store, in one try."""

from __future__ import annotations

import threading

from deit_batch.errors import FetchError
from deit_batch.io import StoredFile
from deit_batch.limits import Limits
from deit_batch.loading.remote import HostLimit, TransientFetchError, too_large
from deit_batch.names import other_forms
from deit_batch.system.object_store import Store, StoreError, is_stored


class StoredFileReader:
    """For one process and any number of threads; each store is made on first use, and kept."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._host_limit = HostLimit(limits.connections)
        self._lock = threading.Lock()
        self._stores: dict[str, Store] = {}

    def read(self, file: StoredFile) -> bytes:
        """Raises FetchError; TransientFetchError if another try may help. A name with accents is looked for in its
        other Unicode forms, too."""
        try:
            return self._read_object(file)
        except TransientFetchError:
            raise
        except FetchError as error:
            for address in other_forms(file.address):
                try:
                    return self._read_object(StoredFile(address))
                except TransientFetchError:
                    raise
                except FetchError:
                    continue
            raise error

    def _read_object(self, file: StoredFile) -> bytes:
        _require_under(self._limits.root, file.address)
        scheme, _, path = file.address.partition("://")
        try:
            store = self._store(scheme)
            with self._host_limit.of(path.partition("/")[0]):
                return self._read(store, path, file.size)
        except StoreError as error:
            if error.passing:
                raise TransientFetchError(str(error), throttled=error.throttled) from error
            raise FetchError(str(error)) from error

    def _store(self, scheme: str) -> Store:
        with self._lock:
            if scheme not in self._stores:
                self._stores[scheme] = Store(scheme, patient=False, connections=self._limits.connections)
            return self._stores[scheme]

    def _read(self, store: Store, path: str, size: int | None) -> bytes:
        """One request, but for an empty object whose size no listing has told: no range of it can be had."""
        if size is not None and size > self._limits.image_bytes:
            raise too_large(self._limits)
        if size == 0:
            return b""
        try:
            return store.read(path, self._limits.image_bytes + 1, self._limits.fetch_seconds)
        except StoreError as error:
            if error.passing or store.look_at(path, self._limits.fetch_seconds).size:
                raise
            return b""


def _require_under(root: str | None, address: str) -> None:
    if root is None:
        return
    inside = is_stored(root) and address.startswith(root.rstrip("/") + "/")
    if not inside or ".." in address.split("/"):
        raise FetchError("outside of --root")
