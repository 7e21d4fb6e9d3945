"""Tables with malformed rows between good ones, in every format and encoding."""

from __future__ import annotations

import json
from collections.abc import Iterator

JSON_ROWS = (
    b"{",
    b"not json",
    b'{"image": null}',
    b'{"image": 7}',
    b'{"image": ["a.jpg"]}',
    b'{"image": ""}',
    b'{"other": "a.jpg"}',
    b'{"image": "a\x00.jpg"}',
    b'{"image": "a.jpg", "image": "nowhere.jpg"}',
    b'{"image": "caf\xe9.jpg"}',
    b"[" * 100_000,
    b'{"image": ' * 10_000,
    b"[]",
    b"7",
    b"null",
    b"NaN",
    b'"',
    b"\x00\x00",
    b'{"image": "nowhere.jpg"} {"image": "nowhere.jpg"}',
)
CSV_ROWS = (
    b"a.jpg,one,too,many",
    b",empty",
    b"nul\x00.jpg,x",
    b"caf\xe9.jpg,x",
    b'"nowhere.jpg"x",x',
    b"http://,x",
    b"data:image/png;base64,####,x",
    b"../../../../nowhere.jpg,x",
)

Table = tuple[str, bytes, list[bool]]


def make(picture: str) -> Iterator[Table]:
    """Name, bytes, and of each row whether it can be scored. `picture` is the path of a good image."""
    good = json.dumps({"image": picture}).encode()
    rows = [row for bad in JSON_ROWS for row in (good, bad)]
    known = [True, False] * len(JSON_ROWS)
    yield "bad.jsonl", b"\n".join(rows), known
    yield "bad-crlf.jsonl", b"\r\n".join(rows), known
    yield "bad-bom.jsonl", b"\xef\xbb\xbf" + b"\n".join(rows), known
    wide = "\n".join(row.decode("latin-1") for row in rows).encode("utf-16")
    yield "bad-utf-16.jsonl", wide, known

    good = picture.encode() + b",x"
    rows = [b"image,other", *(row for bad in CSV_ROWS for row in (good, bad))]
    known = [True, False] * len(CSV_ROWS)
    yield "bad.csv", b"\n".join(rows), known
    yield "bad-crlf.csv", b"\r\n".join(rows), known
    yield "bad-bom.csv", b"\xef\xbb\xbf" + b"\n".join(rows), known
    yield "bad-utf-16.csv", "\n".join(row.decode("latin-1") for row in rows).encode("utf-16"), known
    # A quote that nobody closes is one bad row, and takes none with it.
    yield "bad-quote.csv", b"\n".join([b"image,other", good, b'"open,x', good, good]), [True, False, True, True]
    yield "bad-headers.csv", b"\n".join([b"image,other,other", good + b",x", good, good + b",x"]), [True, False, True]
