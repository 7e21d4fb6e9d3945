"""What makes two references the same: no two images are taken for one because of what is not shown of their names."""

from __future__ import annotations

import csv
import json
import sys
import time
import urllib.parse
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from helpers import interrupted_after, read_jsonl, scored
from hypothesis import given
from hypothesis import strategies as st

from deit_batch.cli import main
from deit_batch.errors import Interrupted, RowError, UsageError
from deit_batch.evaluation.joining import Labels, given_in
from deit_batch.input.identity import comparable, given_identity, identity_of, image_id_if_hidden
from deit_batch.input.labels import open_labelled
from deit_batch.input.locate import locate_value
from deit_batch.io import Failure
from deit_batch.output.merge import merge
from deit_batch.output.read import read_records
from deit_batch.redaction import redact, redact_message
from deit_batch.report.comparison import compare
from deit_batch.report.originals import find_originals
from deit_batch.system.atomic import make_missing_folder

AZURE = "sv=2024-11-04&sr=b&sp=r&se=2026-11-26T00%3A00%3A00Z&sig={}"
AMAZON = (
    "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AK%2F{0}&X-Amz-Date={0}&X-Amz-Expires=3600"
    "&X-Amz-SignedHeaders=host&X-Amz-Signature={0}&X-Amz-Security-Token={0}"
)
GOOGLE = (
    "X-Goog-Algorithm=GOOG4-RSA-SHA256&X-Goog-Credential={0}&X-Goog-Date={0}&X-Goog-Expires=600"
    "&X-Goog-SignedHeaders=host&X-Goog-Signature={0}"
)
CLOUDFRONT = "Expires={0}&Signature={0}&Key-Pair-Id=K{0}"
CLOUDFRONT_POLICY = "Policy={0}&Signature={0}&Key-Pair-Id=K{0}"
SIGNATURES = [AZURE, AMAZON, GOOGLE, CLOUDFRONT, CLOUDFRONT_POLICY]


def identity(name: str) -> str | None:
    """Of a reference of that name, as its record says it."""
    return identity_of({"image": redact(name), "image_id": image_id_if_hidden(name, None)})


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signature", SIGNATURES)
def test_a_link_that_is_signed_anew_is_the_same(signature: str) -> None:
    first, second = (f"https://h/a.jpg?v=1&{signature.format(night)}#f" for night in ("mon", "tue"))
    assert identity(first) == identity(second)
    assert "mon" not in identity_source(first)
    for other in (first.replace("v=1", "v=2"), first.replace("#f", "#g"), first.replace("a.jpg", "b.jpg")):
        assert identity(other) != identity(first)


def identity_source(name: str) -> str:
    return comparable(name)


@pytest.mark.parametrize("signature", SIGNATURES)
def test_a_signature_of_which_a_part_is_missing_or_there_twice_is_none(signature: str) -> None:
    first = f"https://h/a.jpg?{signature.format('mon')}"
    parameters = signature.format("tue").split("&")
    needed = [each for each in parameters if not each.startswith(("sp=", "X-Amz-Security-Token="))]
    for part in needed:
        others = "&".join(each for each in parameters if each != part)
        assert identity(f"https://h/a.jpg?{others}") != identity(first.replace("mon", "tue"))
        assert comparable(f"https://h/a.jpg?{others}") == f"https://h/a.jpg?{others}"
        twice = f"https://h/a.jpg?{others}&{part}&{part}"
        assert comparable(twice) == twice


@pytest.mark.parametrize("name", ["key", "author", "design", "token", "sig", "policy", "Signature", "pass", "x"])
def test_any_other_parameter_tells_two_images_apart(name: str) -> None:
    assert identity(f"http://h/get?{name}=a.jpg") != identity(f"http://h/get?{name}=b.jpg")


def test_user_info_makes_no_other_image() -> None:
    names = ["http://h/a.jpg", "http://bob:pw@h/a.jpg", "http://ghp_16C7@h/a.jpg", "http://bob:pa/ss@h/a.jpg"]
    assert len({identity(name) for name in names}) == 1
    assert identity("http://h/@a.jpg") != identity("http://h/a.jpg")
    assert identity("abfs://one@account/a.jpg") != identity("abfs://two@account/a.jpg")


@given(st.text(), st.text())
def test_names_without_secrets_are_compared_as_they_are(first: str, second: str) -> None:
    assert (identity(first) == identity(second)) == (comparable(first) == comparable(second) or first == second)


URLS = st.builds(
    "http://{}h/{}?{}".format,
    st.sampled_from(["", "u@", "u:p@", "u:p/q@"]),
    st.sampled_from(["a", "b@2x", "c;d=1"]),
    st.lists(
        st.sampled_from([*"&;#?", "sig=1", "sv=1", "se=1", "sr=b", "key=a", "v=1", *AMAZON.format(7).split("&")])
    ).map("&".join),
)


@given(URLS)
def test_what_is_not_compared_is_not_shown_and_so_a_record_has_its_identity(url: str) -> None:
    """Otherwise the name that a record shows would tell less than all."""
    assert comparable(url) == url or redact(url) != url
    assert redact(redact(url)) == redact(url)
    assert comparable(comparable(url)) == comparable(url)


def test_an_id_is_a_text_or_a_number() -> None:
    same = {given_identity(value) for value in (" 7", "7", 7, 7.0)}
    assert len(same) == 1
    assert given_identity("7.5") == given_identity(7.5) != given_identity("7")
    nothing: list[Any] = [None, "", "  ", True, [1], {}, float("nan")]
    for value in nothing:
        with pytest.raises(RowError, match="the id is"):
            given_identity(value)


# --- what is shown ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("https://h/a.jpg?size=3", "https://h/a.jpg?size=3"),
        ("https://user:pa:ss@h/a.jpg", "https://***@h/a.jpg"),
        ("https://user@h/a@b.jpg", "https://***@h/a@b.jpg"),
        ("http://bob:pa/ss@127.0.0.1:1/a.png", "http://***@127.0.0.1:1/a.png"),
        ("http://[::1]:80/a@2x.png", "http://[::1]:80/a@2x.png"),
        ("http://h:80/a@2x.png", "http://h:80/a@2x.png"),
        ("ftp://u:p@h/a.jpg", "ftp://u:***@h/a.jpg"),
        ("abfs://container@account.dfs.core.windows.net/a", "abfs://container@account.dfs.core.windows.net/a"),
        (
            "https://b.s3.amazonaws.com/a.jpg?X-Amz-Credential=AK%2F1&X-Amz-Date=2&X-Amz-Signature=abc#f",
            "https://b.s3.amazonaws.com/a.jpg?X-Amz-Credential=***&X-Amz-Date=2&X-Amz-Signature=***#f",
        ),
        (
            "https://a.blob.core.windows.net/c/a.jpg?sv=1&sig=x%3D&se=2",
            "https://a.blob.core.windows.net/c/a.jpg?sv=1&sig=***&se=2",
        ),
        ("http://h/a?access_token=1&API-KEY=2&Password=3", "http://h/a?access_token=***&API-KEY=***&Password=***"),
        ("http://h/a?x=1;pass=hunter;2", "http://h/a?x=1;pass=***"),
        ("https://user:p?w@host/a#b", "https://***@host/a#b"),
        ("https://user:p#w@host/a", "https://***@host/a"),
        ("http://h/a?pwd=hunter2", "http://h/a?pwd=***"),
        ("http://h/a#access_token=hunter2", "http://h/a#access_token=***"),
        ("http://h/a?jwt=ey&%73as=1", "http://h/a?jwt=***&%73as=***"),
        ("http://h/a?url=https://u:p@i/b&author=bob&design=7&monkey=3", None),
        ("http://h/a?aws_secret_access_key=1&x-functions-key=2&hdnts=3&page=4", None),
        ("http://h/a?next=http%3A%2F%2Fu%3Ap%40i%2F&x=b%3Ftoken%3D1&y=c%2540d", None),
        ("http://h/a?next=http%253A%252F%252Fu%253Ap%2540i%252F", "http://h/a?next=***"),
        ("https:/user:p@h/a.jpg", "https:/***@h/a.jpg"),
        ("HTTP:user:p@h/a.jpg", "HTTP:***@h/a.jpg"),
        ("https:\\\\user:p@h/a.jpg", "https:\\\\***@h/a.jpg"),
        ("//user:p@h/a.jpg?sig=1", "//user:***@h/a.jpg?sig=***"),
        ("ftp:/user:p@h/a.jpg", "ftp:/user:***@h/a.jpg"),
        ("/data/https:/user:p@h/a.jpg", "/data/https:/***@h/a.jpg"),
        ("//server/share/a@2x.jpg", "//server/share/a@2x.jpg"),
        ("C:/me@work/12:30@2x.jpg", "C:/me@work/12:30@2x.jpg"),
        ("file:///data/12:30@2x.jpg", "file:///data/12:30@2x.jpg"),
        ("imgs/a?token=b.jpg", "imgs/a?token=b.jpg"),
    ],
)
def test_what_gives_access_is_not_shown(given: str, shown: str | None) -> None:
    others = {
        "url": "http://h/a?url=https://***@i/b&author=bob&design=7&monkey=3",
        "aws": "http://h/a?aws_secret_access_key=***&x-functions-key=***&hdnts=***&page=4",
        "next": "http://h/a?next=***&x=***&y=c%2540d",
    }
    shown = shown or next(text for name, text in others.items() if f"{name}" in given)
    assert redact(given) == shown
    assert redact_message(f"no answer of {given} at all") == f"no answer of {shown} at all"


STEPS = 3000


REPEATED = (
    *("?sig", "&sig", "#sig=", "http:", "http:/", "http://", "http://a:b@", " ://", ":", "@", "/", "\\", "?", ";"),
    *(
        "a=",
        "%74",
        "%2574",
        "?a=%3Fa%3D",
        "&x=http%3A",
        "http:a=",
        "a=%25",
        "25",
        "A",
        " ",
        "\u0323\u0301",
        "+=",
        "9j/",
    ),
)


@pytest.mark.parametrize("repeated", REPEATED)
def test_what_meets_a_name_takes_steps_in_proportion_to_its_length(repeated: str) -> None:
    """Twice the length, twice the lines and calls of Python, and no more; what it hands to C, such as a pattern, is
    linear or bounded in length. A pattern that goes back and forth would not come to its end."""

    def steps(times: int) -> int:
        name = "http://h/?b=" + repeated * times
        count = [0]

        def counted(*args: object) -> Any:
            count[0] += 1
            return counted

        before = sys.gettrace()
        sys.settrace(counted)
        try:
            redact_message(name)
            comparable(name)
            image_id_if_hidden(name, None)
            locate_value("/9j/" + repeated * times, "image", "", "line 1")
            locate_value(repeated * times, "image", "", "line 1")
        finally:
            sys.settrace(before)
        return count[0]

    assert steps(2 * STEPS) < 2.5 * steps(STEPS) + 1000


def test_a_pattern_does_not_go_back_and_forth() -> None:
    """Ten seconds would not do for the square of their length."""
    start = time.monotonic()
    for end in ("!", "=!", "=", ""):
        for _ in range(200):
            locate_value(f"/9j/{' ' * 4000}A{' ' * 80}{end}", "image", "", "line 1")
            locate_value(f"/9j/{'A ' * 2000}{end}", "image", "", "line 1")
    assert time.monotonic() - start < 10


def test_a_url_of_any_length_costs_its_row_alone() -> None:
    name, location = locate_value("http://h/" + "?sig" * 2**16, "image", "", "line 1")
    assert name is None
    assert isinstance(location, Failure)
    assert location.message == "line 1: a URL of more than 65,536 characters"


def test_a_message_that_quotes_a_url_with_blanks_shows_no_secret() -> None:
    assert redact_message("bad: http://h/a b.jpg?sig=abc (404)") == "bad: http://h/a b.jpg?sig=*** (404)"
    assert redact_message("sig=3 of 4") == "sig=3 of 4"
    assert redact_message('is "http://h/a?key=1": no, (https://u:p@h/b?sig=2).') == (
        'is "http://h/a?key=***": no, (https://***@h/b?sig=***).'
    )


SECRET = "TOPSECRET"


@pytest.mark.parametrize(
    "row",
    [
        {"url": f"s3://user:{SECRET}@h/a.jpg"},
        {"url": [f"https://u:{SECRET}@h/a.jpg?sig={SECRET}"]},
        {"url": f"https://user:{SECRET}/w0rd@127.0.0.1/a.jpg"},
        {"url": f"https://user:{SECRET}?w0rd@127.0.0.1/a.jpg"},
        {"url": f"ftp://user:{SECRET}@h/a.jpg?token={SECRET}"},
        {"url": f"//user:{SECRET}@h/a.jpg"},
        {"url": "a.jpg", "id": {"u": f"https://u:{SECRET}@h/a?sig={SECRET}"}},
    ],
    ids=str,
)
def test_no_record_and_no_message_shows_a_secret(row: dict[str, Any], vit: Path, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(json.dumps({"id": "1", **row}) + "\n")
    command = [
        "score",
        str(tmp_path / "t.jsonl"),
        "--model",
        str(vit),
        "--workers",
        "0",
        "--column",
        "url",
        "--id",
        "id",
        "--map",
        f"https://user:{SECRET}@i:9/=/tmp/",
    ]
    for log_format in ("text", "json", "github"):
        more = ["--out", str(tmp_path / "p.jsonl"), "--fresh", "--verbose", "--log-format", log_format]
        done = CliRunner().invoke(main, [*command, *more])
        assert done.exit_code == 3
        written = "".join(path.read_text() for path in tmp_path.glob("p.jsonl*") if path.suffix != ".stamps")
        assert SECRET not in done.output + written
    assert SECRET not in CliRunner().invoke(main, [*command, "--dry-run"]).output


def test_no_wrong_usage_shows_a_secret(vit: Path, tmp_path: Path) -> None:
    url = f"https://user:{SECRET}@h/a.jpg?sig={SECRET}"
    (tmp_path / "t.csv").write_text(f"{url},cat\n")
    for words in (["--input", str(tmp_path / "t.csv")], ["--input", url], ["--input", f"hf://x?token={SECRET}"]):
        for how in ([], ["--verbose", "--log-format", "json"], ["--dry-run"]):
            done = CliRunner().invoke(
                main, ["score", *words, "--model", str(vit), "--out", str(tmp_path / "p.jsonl"), *how]
            )
            assert (done.exit_code, SECRET in done.output) == (2, False), done.output
    (tmp_path / "s.toml").write_text(f'out = "https://user:{SECRET}@h/p.jsonl"\n')
    for words in (
        ["--out", f"ftp://user:{SECRET}@h/p.jsonl"],
        ["--config", str(tmp_path / "s.toml")],
        ["--metrics-file", f"https://user:{SECRET}@h/m.prom", "--out", str(tmp_path / "p.jsonl")],
    ):
        done = CliRunner().invoke(main, ["score", "--model", str(vit), "--input", str(tmp_path), *words])
        assert (done.exit_code, SECRET in done.output) == (2, False), done.output
        assert "what can be written to is a path" in done.output
    done = CliRunner().invoke(main, ["score", "--config", f"https://user:{SECRET}@h/c.toml"])
    assert (done.exit_code, SECRET in done.output) == (2, False), done.output
    with pytest.raises(UsageError) as error:
        make_missing_folder(tmp_path / f"ftp:/user:{SECRET}@h/p.jsonl")
    assert SECRET not in str(error.value)


def test_a_run_is_continued_whatever_the_password_of_a_map(photos: Path, vit: Path, tmp_path: Path) -> None:
    """Settings are compared as they are written, without it."""
    before = scored(photos, vit, tmp_path, map=((f"https://user:{SECRET}@h/", "/tmp/"),)).read_bytes()
    assert scored(photos, vit, tmp_path, map=(("https://user:other@h/", "/tmp/"),)).read_bytes() == before


def test_a_column_whose_name_is_not_utf8_is_kept(photos: Path, vit: Path, tmp_path: Path) -> None:
    (photos / "t.csv").write_bytes(b"image,caf\xe9\n01.jpg,1\n02.jpg,2\n")
    keep = (b"caf\xe9".decode("utf-8", "surrogateescape"),)
    records = read_jsonl(scored(photos / "t.csv", vit, tmp_path, keep=keep))
    assert [record["caf\ufffd"] for record in records] == ["1", "2"]
    scored(photos / "t.csv", vit, tmp_path, keep=keep)  # finished already


@pytest.mark.parametrize("part", "?sig ?sig= &sig=1 ;a :// @ ://u:p@ # ? %73 = a".split())
def test_a_long_name_takes_no_longer_than_it_must(part: str) -> None:
    """A deadline against a hang: a name of a megabyte is read at once, or not in a day."""
    name = "http://h/" + part * (2**20 // len(part))
    assert identity(name)
    assert redact_message(name)


# --- runs -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def links(server: str, tmp_path: Path) -> Path:
    """A list of 12 images that are told apart by a parameter alone, which is called like a secret."""
    path = tmp_path / "urls.txt"
    path.write_text("".join(f"{server}/get?key={number:02}.jpg\n" for number in range(12)))
    return path


def turn_around(links: Path) -> None:
    links.write_text("".join(reversed(links.read_text().splitlines(keepends=True))))


def rewrite(links: Path, change: dict[str, str]) -> None:
    text = links.read_text()
    for old, new in change.items():
        text = text.replace(old, new)
    links.write_text(text)


def test_a_list_in_another_order_is_another_input(links: Path, vit: Path, tmp_path: Path) -> None:
    out = scored(links, vit, tmp_path)
    records = read_jsonl(out)
    assert len({record["image"] for record in records}) == 1  # nothing of it is shown
    assert len({record["image_id"] for record in records}) == 12
    turn_around(links)
    with pytest.raises(UsageError, match="its input has changed since"):
        scored(links, vit, tmp_path)
    out.rename(tmp_path / "p.jsonl.partial")
    with pytest.raises(UsageError, match="Record 0 is of another input than"):
        scored(links, vit, tmp_path)


def test_failures_are_tried_again_over_the_same_list_alone(links: Path, vit: Path, tmp_path: Path) -> None:
    rewrite(links, {"key=05.jpg": "key=none.jpg"})
    out = scored(links, vit, tmp_path)
    before = out.read_bytes()
    turn_around(links)
    with pytest.raises(UsageError, match="Record 0 is of another input than"):
        scored(links, vit, tmp_path, mode="retry-failed")
    assert out.read_bytes() == before


def test_a_stopped_run_goes_on_only_over_the_same_list(
    links: Path, vit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Interrupted), interrupted_after(2, monkeypatch):
        scored(links, vit, tmp_path)
    turn_around(links)
    with pytest.raises(UsageError, match="Record 0 is of another input than"):
        scored(links, vit, tmp_path)
    turn_around(links)
    assert scored(links, vit, tmp_path).read_bytes() == scored(links, vit, tmp_path, "whole.jsonl").read_bytes()


def test_a_stopped_run_goes_on_over_links_that_were_signed_anew(
    links: Path, vit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rewrite(links, {".jpg": f".jpg?{AZURE.format('mon')}", "get?key=": ""})
    with pytest.raises(Interrupted), interrupted_after(2, monkeypatch):
        scored(links, vit, tmp_path)
    rewrite(links, {"mon": "tue", "11-26": "11-27"})
    records = read_jsonl(scored(links, vit, tmp_path))
    assert len(records) == 12
    assert not any("mon" in json.dumps(record) or "tue" in json.dumps(record) for record in records)
    rewrite(links, {"tue": "wed", "11-27": "11-28"})
    scored(links, vit, tmp_path)  # finished already


def test_shards_of_two_lists_do_not_merge(links: Path, vit: Path, tmp_path: Path) -> None:
    for number in (0, 1):
        scored(links, vit, tmp_path, f"{number}.jsonl", shard=(number, 2))
        turn_around(links)
    with pytest.raises(UsageError, match="the input changed between them"):
        merge([tmp_path / "0.jsonl", tmp_path / "1.jsonl"], str(tmp_path / "all.jsonl"))
    scored(links, vit, tmp_path, "1.jsonl", shard=(1, 2), mode="fresh")
    merge([tmp_path / "0.jsonl", tmp_path / "1.jsonl"], str(tmp_path / "all.jsonl"))
    assert (tmp_path / "all.jsonl").read_bytes() == scored(links, vit, tmp_path).read_bytes()


@pytest.mark.parametrize("out", ["p.jsonl", "p.csv", "p.parquet"])
def test_comparisons_labels_and_later_runs_find_each_image(out: str, links: Path, vit: Path, tmp_path: Path) -> None:
    night: dict[str, Any] = {"incremental": True}
    first = scored(links, vit, tmp_path, out, **night)
    before = {record["image_id"]: record["predictions"] for record in read_records(first)}
    turn_around(links)
    other = scored(links, vit, tmp_path, f"fresh-{out}")
    assert {record["image_id"]: record["predictions"] for record in read_records(other)} == before
    found = compare(first, other, most_rows=10, most_shown=10)
    assert (found.states["same label"], found.largest) == (12, [])
    scored(links, vit, tmp_path, out, **night)
    assert [record["image_id"] for record in read_records(first)] == list(reversed(before))
    assert {record["image_id"]: record["predictions"] for record in read_records(first)} == before

    table = tmp_path / "labels.csv"
    rows = [(url, f"class {url[-6:-4]}") for url in links.read_text().split()]
    table.write_text("image,label\n" + "".join(f"{url},{label}\n" for url, label in rows[3:]))
    labels = Labels(given_in(open_labelled(str(table))), read_records(first))
    joined = {pair.record["index"]: pair.labels for pair in labels.join(read_records(first))}
    assert joined == {place: (label,) for place, (_, label) in enumerate(rows) if place >= 3}
    assert labels.without_label == 3


def test_one_label_and_one_record_of_two_hidden_names_are_not_joined(tmp_path: Path) -> None:
    """By what is shown of them they would be one file."""
    (tmp_path / "l.csv").write_text("image,label\nhttp://h/get?key=a.jpg,cat\n")
    name = "http://h/get?key=b.jpg"
    record = {"index": 0, "image": redact(name), "image_id": image_id_if_hidden(name, None), "predictions": []}
    labels = Labels(given_in(open_labelled(str(tmp_path / "l.csv"))), [record])
    assert (list(labels.join([record])), labels.without_label) == ([], 1)


def test_a_picture_is_not_fetched_from_an_address_that_is_not_whole(links: Path, vit: Path, tmp_path: Path) -> None:
    records = dict(enumerate(read_jsonl(scored(links, vit, tmp_path))))
    (reference, *_) = find_originals({0: records[0]}, None, folder=None, beside=tmp_path / "p.jsonl", fetch=True)
    assert "whole address is in the run's input alone" in str(reference.location)
    run = {"input": str(links)}
    (reference,) = find_originals({0: records[3]}, run, folder=None, beside=tmp_path / "p.jsonl", fetch=True)
    assert "key=03.jpg" in str(reference.location)
    turn_around(links)
    (reference,) = find_originals({0: records[3]}, run, folder=None, beside=tmp_path / "p.jsonl", fetch=True)
    assert "whole address is in the run's input alone" in str(reference.location)


# --- --id -------------------------------------------------------------------------------------------------------------


def write_table(path: Path, rows: list[tuple[str, str]]) -> None:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([("id", "url"), *rows])


def test_a_column_may_say_which_image_a_row_is_of(
    server: str, vit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, options = tmp_path / "t.csv", dict[str, Any](id="id", column="url")

    def write(night: str, ids: list[int]) -> None:
        write_table(table, [(f"n{number}", f"{server}/{number:02}.jpg?night={night}") for number in ids])

    write("mon", list(range(12)))
    with pytest.raises(Interrupted), interrupted_after(2, monkeypatch):
        scored(table, vit, tmp_path, **options)
    write("tue", list(range(12)))
    first = scored(table, vit, tmp_path, **options)
    records = read_jsonl(first)
    assert [urllib.parse.urlsplit(record["image"]).query for record in records].count("night=mon") == 8
    assert len({record["image_id"] for record in records}) == 12
    write("wed", list(range(12)))
    scored(table, vit, tmp_path, **options)  # finished already
    write("wed", [1, 0, *range(2, 12)])
    with pytest.raises(UsageError, match="its input has changed since"):
        scored(table, vit, tmp_path, **options)
    with pytest.raises(UsageError, match=r"id was \"id\", is null"):
        scored(table, vit, tmp_path, column="url")
    other = scored(table, vit, tmp_path, "other.jsonl", **options)
    assert compare(first, other, most_rows=10, most_shown=10).states == {"same label": 12}
    rows = "".join(f"n{number},elsewhere/{number}.png,class {number}\n" for number in range(12))
    (tmp_path / "l.csv").write_text("id,image,label\n" + rows)
    labels = Labels(given_in(open_labelled(str(tmp_path / "l.csv"), id="id")), read_records(other))
    joined = [pair.labels for pair in labels.join(read_records(other))]
    assert joined == [("class 1",), ("class 0",), *((f"class {number}",) for number in range(2, 12))]


def test_an_id_with_other_bytes_is_scored_again(photos: Path, vit: Path, tmp_path: Path) -> None:
    """It says which image it is, not that the image has stayed as it was."""
    table = photos / "t.csv"
    options: dict[str, Any] = {"id": "id", "column": "url", "incremental": True}
    write_table(table, [(str(number), f"{number:02}.jpg") for number in range(4)])
    first = read_jsonl(scored(table, vit, tmp_path, **options))
    write_table(table, [(str(number), f"{3 - number:02}.jpg") for number in range(4)])
    second = read_jsonl(scored(table, vit, tmp_path, **options))
    assert [record["predictions"] for record in second] == [record["predictions"] for record in first][::-1]
    assert [record["image_id"] for record in second] == [record["image_id"] for record in first]


def test_a_row_without_an_id_is_a_failed_record(photos: Path, vit: Path, tmp_path: Path) -> None:
    table = photos / "t.csv"
    write_table(table, [("1", "01.jpg"), ("", "02.jpg"), ("3", "03.jpg")])
    records = read_jsonl(scored(table, vit, tmp_path, id="id", column="url"))
    assert [record.get("error", {}).get("message") for record in records] == [None, "line 3: the id is empty", None]
    with pytest.raises(UsageError, match="no column is called 'nope'"):
        scored(table, vit, tmp_path, "q.jsonl", id="nope", column="url")
    with pytest.raises(UsageError, match="has no columns; --id is for tables"):
        scored(photos, vit, tmp_path, "q.jsonl", id="id")


def test_labels_of_an_id_need_no_image(photos: Path, vit: Path, tmp_path: Path, messages: list[str]) -> None:
    table = photos / "t.csv"
    write_table(table, [(f"n{number}", f"{number:02}.jpg") for number in range(4)])
    found = scored(table, vit, tmp_path, id="id", column="url")
    (tmp_path / "l.csv").write_text("id,label\n" + "".join(f"n{number},can\n" for number in range(1, 4)))
    joined = Labels(given_in(open_labelled(str(tmp_path / "l.csv"), id="id", image_optional=True)), read_records(found))
    assert len(list(joined.join(read_records(found)))) == 3
    with pytest.raises(UsageError, match="no column looks like the image"):
        open_labelled(str(tmp_path / "l.csv"), id="id")
    page = ["report", str(found), "--labels", str(tmp_path / "l.csv"), "--out", str(tmp_path / "r.html")]
    done = CliRunner().invoke(main, [*page, "--id", "id"])
    assert (done.exit_code, "labels for 3 of 4 images" in done.stderr) == (0, True), done.stderr
    (tmp_path / "l.csv").write_text("image,label\nelsewhere.jpg,can\n")
    done = CliRunner().invoke(main, page)
    assert (done.exit_code, "labels for 0 of 4 images" in done.stderr) == (0, True), done.stderr
    evaluation = ["evaluate", "--predictions", str(found), "--out", str(tmp_path / "e"), "--id", "id"]
    (tmp_path / "l.csv").write_text("id,label\n" + "".join(f"n{number},can\n" for number in range(4)))
    done = CliRunner().invoke(main, [*evaluation, "--input", str(tmp_path / "l.csv")])
    assert (done.exit_code, "on 4 of 4 images" in done.stderr) == (0, True), done.stderr
