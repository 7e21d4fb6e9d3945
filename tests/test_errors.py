"""The exit status tells a scheduler whether to try again."""

from __future__ import annotations

import errno
import gzip
import os
import zlib

import pytest

from deit_batch import errors
from deit_batch.errors import DeitBatchError, OutputError, cut_off


def of_the_system(number: int) -> OSError:
    return OSError(number, os.strerror(number))


@pytest.mark.parametrize(
    ("cause", "status"),
    [
        (of_the_system(errno.EIO), 1),
        (of_the_system(errno.ESTALE), 1),
        (EOFError(), 1),
        (gzip.BadGzipFile("Not a gzipped file"), 2),
        (zlib.error(), 2),
        (OSError("Corrupt snappy compressed data."), 2),
        (UnicodeDecodeError("utf-16", b"", 0, 1, ""), 2),
    ],
    ids=repr,
)
def test_damage_stays_and_a_medium_may_come_back(cause: Exception, status: int) -> None:
    assert cut_off("", cause).exit_status == status


@pytest.mark.parametrize(
    ("number", "status"),
    [
        (errno.ENOSPC, 1),
        (errno.EIO, 1),
        (errno.ENOENT, 1),
        (errno.EACCES, 2),
        (errno.EROFS, 2),
        (errno.EISDIR, 2),
        (errno.ENOTDIR, 2),
        (errno.ENAMETOOLONG, 2),
    ],
    ids=str,
)
def test_what_may_not_be_written_today_may_not_be_tomorrow(number: int, status: int) -> None:
    with pytest.raises(OutputError) as caught:
        raise OutputError("") from of_the_system(number)
    assert caught.value.exit_status == status
    assert OutputError("being written by another").exit_status == 1


def test_the_tree_on_the_page_names_them_all() -> None:
    kinds = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, DeitBatchError)]
    assert errors.__doc__
    assert [kind.__name__ for kind in kinds if kind.__name__ not in errors.__doc__] == []
