"""Records as JSON that any reader takes, and without secrets."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deit_batch.io import Failure, Record, json_line, redact

_anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.dates(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


def no_constant(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


@given(
    st.none() | st.text(st.characters()),
    st.lists(st.tuples(st.text(st.characters()), st.floats(0, 1))),
    st.none() | st.text(st.characters()),
    st.dictionaries(st.text(st.characters(), min_size=1), _anything),
)
def test_any_record_is_one_line_of_strict_json(
    image: str | None, predictions: list[tuple[str, float]], error: str | None, keep: dict[str, object]
) -> None:
    failure = None if error is None else Failure("X", error)
    record = Record(3, image, [{"label": label, "score": score} for label, score in predictions], failure, keep)
    line = json_line(record.as_dict())
    assert line.count(b"\n") == 1
    values = json.loads(line.decode("utf-8"), parse_constant=no_constant)
    assert [p["score"] for p in values["predictions"]] == [score for _, score in predictions]


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("https://h/a.jpg?size=3", "https://h/a.jpg?size=3"),
        ("https://user:pa:ss@h/a.jpg", "https://user:***@h/a.jpg"),
        ("https://user@h/a@b.jpg", "https://user@h/a@b.jpg"),
        ("ftp://u:p@h/a.jpg", "ftp://u:***@h/a.jpg"),
        (
            "https://b.s3.amazonaws.com/a.jpg?X-Amz-Credential=AK%2F1&X-Amz-Date=2&X-Amz-Signature=abc#f",
            "https://b.s3.amazonaws.com/a.jpg?X-Amz-Credential=***&X-Amz-Date=2&X-Amz-Signature=***#f",
        ),
        (
            "https://a.blob.core.windows.net/c/a.jpg?sv=1&sig=x%3D&se=2",
            "https://a.blob.core.windows.net/c/a.jpg?sv=1&sig=***&se=2",
        ),
        ("http://h/a?access_token=1&API_KEY=2;Password=3", "http://h/a?access_token=***&API_KEY=***;Password=***"),
        ("imgs/a?token=b.jpg", "imgs/a?token=b.jpg"),
    ],
)
def test_what_gives_access_is_not_shown(given: str, shown: str) -> None:
    assert redact(given) == shown
