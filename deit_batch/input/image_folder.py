"""Folders of images with a table beside them, as the Hub has them: metadata.csv, .jsonl or .parquet with a column
`file_name` (huggingface.co/docs/datasets/image_load#imagefolder)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace

from deit_batch.input.files import walk_images
from deit_batch.input.kinds import InputKind, parse_input_name
from deit_batch.input.passed_over import pass_over
from deit_batch.io import LocalFile, Reference, Source
from deit_batch.system import object_store

FILE_NAME = "file_name"
_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


def metadata_files(folder: str) -> Iterator[str]:
    """The paths that a folder's metadata may be at, of those that are there."""
    given = parse_input_name(folder)
    if given.kind is not InputKind.FOLDER:
        return
    for name in _NAMES:
        path = os.path.join(folder, name)
        if object_store.exists(path) if given.stored else os.path.isfile(path):
            yield path


def counting_unlisted(source: Source, folder: str, table: str) -> Source:
    """The references of a table in a folder. Once all of them are taken, the images in the folder that none is of are
    counted as passed over. (Not on a store, which would have to be listed for it.)"""
    if object_store.is_stored(folder):
        return source

    def references() -> Iterator[Reference]:
        listed: set[str] = set()
        for reference in source.references:
            if isinstance(reference.location, LocalFile):
                listed.add(os.path.normpath(reference.location.path))
            yield reference
        for path in walk_images(folder):
            if os.path.normpath(path) not in listed:
                pass_over(source.passed_over, f"not in {os.path.basename(table)}")

    return replace(source, references=references())
