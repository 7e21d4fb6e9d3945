"""What is found among images and is no input: counted by the ending of its name, and said when all has been read.

Every kind of input that finds names, where the user has not given each of them, counts here what it passes over.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Mapping

from deit_batch.input.kinds import HEIF, HOW_TO_READ_HEIF, IMAGES
from deit_batch.io import counts
from deit_batch.system.logs import warn_even_if_quiet

PHOTOS = frozenset(
    # phones and newer formats
    ".heics .heifs .avifs .jxl .jxr .wdp .hdp .jp2 .j2k .j2c .jpc .jpf .jpx .jpm .mpo .jps "
    # raw, of cameras
    ".3fr .ari .arw .bay .cap .cr2 .cr3 .crw .dcr .dcs .dng .erf .fff .gpr .iiq .k25 .kdc .mef .mos .mrw .nef .nrw "
    ".orf .ori .pef .raf .raw .rw2 .rwl .rwz .sr2 .srf .srw .x3f "
    # of programs
    ".apng .bpg .cur .dib .exr .flif .hdr .ico .icns .jif .jfi .jps .pam .pbm .pcx .pfm .pgm .pjp .pjpeg .pnm .ppm "
    ".psb .psd .qoi .ras .sgi .tga .xbm .xcf .xpm "
    # of medicine
    ".dcm .dicom".split()
).union(HEIF)
"""Endings of still pictures that are not read (those of HEIF: without its extra), though whoever has such files will
have meant them to be."""

MOST_KINDS = 100
"""Reasons and endings that are told apart, so that a folder of a million endings takes no memory."""

MOST_SHOWN = 6

FOLDERS, SEEN_FOLDERS = "folders", "folders seen under another name"
"""Reasons under which no file is counted."""

_OF_ONE = {
    FOLDERS: "folder",
    SEEN_FOLDERS: "folder seen under another name",
    "further images of a sample": "further image of a sample",
}

WITHOUT_ENDING, OTHER_ENDINGS = "without an ending", "of other endings"

_PLAIN_ENDING = re.compile(r"\.[\w+~-]{1,16}")


def pass_over(passed_over: Counter[str], reason: str, number: int = 1) -> None:
    """Counts under `reason`: an ending, or why else there is no input."""
    known = reason in passed_over or len(passed_over) < MOST_KINDS or is_photo(reason)
    passed_over[reason if known else OTHER_ENDINGS] += number


def is_hidden(member: str) -> bool:
    """Of the name of a member of an archive, as of a file in a folder."""
    return any(part.startswith(".") and part not in (".", "..") for part in member.split("/"))


def ending_of(name: str) -> str:
    """Under which a file that is no image by its name is counted: ".mov". Of a long or odd one the beginning."""
    ending = os.path.splitext(name)[1].lower()
    if ending in ("", "."):
        return WITHOUT_ENDING
    plain = _PLAIN_ENDING.match(ending)
    if plain is None:
        return OTHER_ENDINGS
    return ending if plain[0] == ending else f"{plain[0]}…"


def is_photo(reason: str) -> bool:
    return reason in PHOTOS or _is_spoilt(reason)


def _is_spoilt(reason: str) -> bool:
    """Whether an image's ending has something behind it, as what was fetched with its query has: "a.jpg?width=300"."""
    return reason.endswith("…") and reason[:-1] in IMAGES


def counts_of(passed_over: Mapping[str, int], *, most: int | None = None) -> str:
    """As in "3 .mov, 1 folder"; `most` as in io.counts."""
    return counts(
        {_OF_ONE.get(reason, reason) if number == 1 else reason: number for reason, number in passed_over.items()},
        most=most,
    )


def files_in(passed_over: Mapping[str, int]) -> int:
    """How many of them are files."""
    return sum(number for reason, number in passed_over.items() if reason not in (FOLDERS, SEEN_FOLDERS))


def photos_in(passed_over: Mapping[str, int]) -> Counter[str]:
    return Counter({reason: number for reason, number in passed_over.items() if is_photo(reason)})


def remedy(photos: Collection[str]) -> str:
    """What to do to have these endings of photos read."""
    heif, spoilt = HEIF.intersection(photos), set(filter(_is_spoilt, photos))
    ways = {
        HOW_TO_READ_HEIF: heif,
        "convert them to JPEG or PNG" if not heif else "convert the others to JPEG or PNG": set(photos) - heif - spoilt,
        "rename those that end in more than .jpg or the like": spoilt,
    }
    return " and ".join(way for way, endings in ways.items() if endings)


def warn_of_photos(passed_over: Mapping[str, int]) -> None:
    """At the end of a run, of those that it passed over; for whoever reads nothing but what --quiet lets through."""
    photos = photos_in(passed_over)
    if photos:
        warn_even_if_quiet("photos were passed over: %s; to have them read, %s", counts(photos), remedy(photos))
