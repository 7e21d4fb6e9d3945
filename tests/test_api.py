"""From Python: what is scored, by a model and workers that are kept between calls, and what comes out."""

from __future__ import annotations

import hashlib
import io
import itertools
import multiprocessing
import os
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
from helpers import LOOPBACK, jpeg, photo
from PIL import Image

from deit_batch import Limits, Model, embed, load, score
from deit_batch.errors import CheckpointError, UsageError
from deit_batch.io import Failure
from deit_batch.python_words import as_python

NOTEBOOK = """
import asyncio, multiprocessing
multiprocessing.set_start_method({start!r})
from deit_batch import load

model = load({model!r}, workers={workers})

async def cell():
    for _ in range(2):
        print([record.predictions[0]["score"] for record in model.score({photos!r}, limit=20)])

asyncio.run(cell())
"""
"""As a kernel runs it: from no file, in an event loop, and never closed."""


@pytest.fixture(scope="module", params=[(None, 0), ("fork", 2), ("spawn", 1), ("forkserver", 1)], ids=str)
def model(vit: Path, request: pytest.FixtureRequest) -> Iterator[Model]:
    """With workers that are started in each way that there is, or without."""
    start, workers = request.param
    with started_by(start), load(vit, workers=workers) as made:
        yield made


@contextmanager
def started_by(method: str | None) -> Iterator[None]:
    """Workers are; None: as before."""
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method(method or before, force=True)
    try:
        yield
    finally:
        multiprocessing.set_start_method(before, force=True)


def test_each_call_gives_what_a_call_by_itself_does(photos: Path, vit: Path, model: Model) -> None:
    for options in ({"top_k": 1}, {"limit": 3, "threshold": 0.1}, {"shard": (1, 2)}):
        chosen: dict[str, Any] = options
        assert list(model.score(photos, **chosen)) == list(score(photos, model=vit, workers=0, **chosen))
    pairs = zip(model.embed(photos), embed(photos, model=vit, workers=0), strict=True)
    assert all(np.array_equal(a.features["cls"], b.features["cls"]) for a, b in pairs if a.features and b.features)
    assert list(model.score(photos)) == list(score(photos, model=vit, workers=1))


def test_calls_of_two_threads_and_one_within_another(photos: Path, vit: Path, model: Model) -> None:
    expected = list(score(photos, model=vit, workers=0))
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: list(model.score(photos)), range(2), timeout=60)
    assert first == second == expected
    outer = []
    for record in model.score(photos):
        outer.append(record)
        if record.index in (0, 39):
            assert list(model.score(photos, limit=5)) == expected[:5]
    assert outer == expected


def test_relative_paths_start_from_where_the_program_is(photos: Path, model: Model, tmp_path: Path) -> None:
    """And not from where it was when its workers began."""
    expected = [record.predictions for record in model.score(photos, limit=2)]
    before = os.getcwd()
    try:
        for number, folder in enumerate(("first", "second")):
            (tmp_path / folder).mkdir()
            os.chdir(tmp_path / folder)
            Path("a.jpg").write_bytes((photos / f"{number:02}.jpg").read_bytes())
            Path("t.csv").write_text("image\na.jpg\n")
            for given in (".", ["a.jpg"], "t.csv", iter(["a.jpg"]), pd.DataFrame({"image": ["a.jpg"]})):
                assert [record.predictions for record in model.score(given)] == [expected[number]]
            (gone,) = model.score(["gone.jpg"])
            assert gone.error
            assert gone.error.message.startswith(f"No such file: {tmp_path / folder}/gone.jpg")
    finally:
        os.chdir(before)


def test_features_after_the_program_has_gone_elsewhere(photos: Path, vit: Path) -> None:
    expected = [record.features for record in embed(photos, model=vit, workers=0, limit=1)]
    before = os.getcwd()
    os.chdir(vit.parent)
    try:
        with load(vit.name, workers=0) as model:
            os.chdir(photos)
            (record,) = model.embed(photos, limit=1)
    finally:
        os.chdir(before)
    assert np.array_equal((record.features or {})["cls"], (expected[0] or {})["cls"])


def test_a_call_that_is_left_early_is_no_trouble(photos: Path, vit: Path, model: Model) -> None:
    (photos / "07.jpg").write_bytes(b"broken")
    expected = list(score(photos, model=vit, workers=0))
    for _ in range(3):
        list(itertools.islice(model.score(photos), 3))
    with closing(model.score(photos)) as records:
        assert next(records) == expected[0]
    assert list(records) == []
    assert list(model.score(photos)) == expected


@pytest.mark.parametrize("workers", [0, 2])
def test_a_call_that_is_interrupted_is_no_trouble_for_the_next(photos: Path, vit: Path, workers: int) -> None:
    def images() -> Iterator[Path]:
        yield from itertools.islice(photos.iterdir(), 20)
        raise KeyboardInterrupt

    with started_by("fork"), load(vit, workers=workers, batch_size=4) as model:
        expected = list(model.score(photos))
        with pytest.raises(KeyboardInterrupt):
            list(model.score(images()))
        assert list(model.score(photos)) == expected


def test_a_url_among_others_is_fetched(photos: Path, server: str, vit: Path) -> None:
    with load(vit, workers=0, limits=LOOPBACK) as model:
        (path, url) = model.score([photos / "00.jpg", f"{server}/00.jpg"])
    assert (url.image, url.predictions) == (f"{server}/00.jpg", path.predictions)


def test_what_a_program_holds_is_scored_as_its_file_is(photos: Path, model: Model) -> None:
    """One of each kind, out of a generator, among others that are no image."""
    expected = [record.predictions for record in model.score(photos)]
    paths = sorted(photos.iterdir())
    opened = [Image.open(path) for path in paths[2:4]]
    held: list[Any] = [str(paths[0]), paths[1], *opened, np.asarray(Image.open(paths[4])), paths[5].read_bytes()]
    odd: list[Any] = [None, photos / "gone.jpg", np.zeros((3, 8, 8)), b"broken"]
    records = list(model.score(item for pair in itertools.zip_longest(held, odd) for item in pair))
    assert [record.index for record in records] == list(range(12))
    assert [record.predictions for record in records[::2]] == expected[:6]
    errors = [record.error.type for record in records[1::2] if record.error]
    assert errors == ["RowError", "FetchError", "RowError", "DecodeError", "RowError", "RowError"]
    assert [record.image for record in records[:4]] == [str(paths[0]), None, str(paths[1]), f"{photos}/gone.jpg"]
    (alone,) = model.score(opened[0], top_k=1)
    assert (alone.image, alone.predictions) == (None, expected[2][:1])
    features = [record.features for record in model.embed([paths[4], held[4]])]
    assert all(each and np.array_equal(each["cls"], (features[0] or {})["cls"]) for each in features)
    for image in opened:
        image.close()


@pytest.mark.parametrize("make", [np.asarray, Image.Image.copy])
def test_a_generator_is_never_held_whole(make: Callable[[Image.Image], Any], model: Model) -> None:
    alive: set[int] = set()
    most = 0

    def images() -> Iterator[Any]:
        nonlocal most
        for number in range(150):
            image = make(photo(seed=number % 3).copy())
            alive.add(number)
            weakref.finalize(image, alive.discard, number)
            most = max(most, len(alive))
            yield image

    assert sum(not record.error for record in model.score(images())) == 150
    assert most <= 4


def test_pixels_are_bounded_in_what_is_held(vit: Path) -> None:
    with load(vit, workers=0, limits=Limits(image_pixels=2000)) as model:
        small, large = model.score([photo(20, 10), np.asarray(photo(50, 41))])
    assert (small.error, large.error) == (None, Failure("DecodeError", "50x41 is more than 2,000 pixels"))


def test_the_error_of_a_generator_comes_after_what_it_gave(model: Model) -> None:
    def images() -> Iterator[Image.Image]:
        yield photo()
        yield photo()
        raise OSError("the camera is gone")

    records = model.score(images())
    assert [next(records).index, next(records).index] == [0, 1]
    with pytest.raises(OSError, match="the camera is gone"):
        next(records)


@pytest.mark.parametrize("frame", [pd.DataFrame, pl.DataFrame])
def test_a_data_frame_is_scored_and_made(frame: Any, photos: Path, model: Model) -> None:
    paths = sorted(map(str, photos.iterdir()))[:3]
    table = frame({"where": [*paths, "gone.jpg"], "kind": ["x", "y", "z", None]})
    records = list(model.score(table, column="where", keep=["kind"]))
    assert [record.image for record in records] == [*paths, "gone.jpg"]
    made = model.score(table, column="where", keep=["kind"]).to_frame()
    columns = "index image label score predictions error_type error_message kind".split()
    assert (list(made.columns), made["index"].to_list(), made["kind"].to_list()[:3]) == (
        columns,
        [0, 1, 2, 3],
        [*"xyz"],
    )
    assert made["predictions"].to_list() == [record.predictions for record in records]
    assert made["score"].to_list()[:3] == [record.predictions[0]["score"] for record in records[:3]]
    assert made[["label", "score", "error_message"]].isna().to_numpy().tolist() == [[False, False, True]] * 3 + [
        [True, True, False]
    ]


def test_the_labels_of_pandas_rows_come_back(photos: Path, model: Model) -> None:
    paths = sorted(map(str, photos.iterdir()))[:4]
    table = pd.DataFrame({"where": paths}).iloc[[3, 1]]
    table["label"] = model.score(table, column="where").to_frame()["label"]
    wanted = [record.predictions[0]["label"] for record in model.score([paths[3], paths[1]])]
    assert table["label"].to_list() == wanted
    series = model.score(table["where"], limit=1).to_frame()
    assert (series.index.to_list(), series["index"].to_list(), series["image"].to_list()) == ([3], [0], [paths[3]])


def test_a_frame_of_records_that_are_gone_is_refused(model: Model) -> None:
    records = model.score([jpeg()])
    assert len(list(records)) == 1
    with pytest.raises(UsageError, match="all records have been read before"):
        records.to_frame()


def test_a_frame_of_features_and_one_of_nothing(photos: Path, model: Model) -> None:
    (photos / "01.jpg").write_bytes(b"broken")
    made = model.embed(photos, features=["cls", "mean"], limit=2).to_frame()
    assert list(made.columns) == "index image cls mean error_type error_message".split()
    (record,) = model.embed(photos, limit=1)
    assert np.array_equal(made["cls"][0], (record.features or {})["cls"])
    assert made["cls"].isna().to_list() == [False, True]
    nothing = model.score(iter([])).to_frame()
    assert (len(nothing), list(nothing.columns)[:3]) == (0, ["index", "image", "label"])
    inline = model.score([jpeg()]).to_frame()
    assert inline["image_sha256"].to_list() == [hashlib.sha256(jpeg()).hexdigest()]


def test_a_kept_column_of_a_frames_own_name_has_another(model: Model, photos: Path) -> None:
    table = pd.DataFrame({"image": [jpeg(), b"broken"], "label": ["cat", "dog"], "kept_label": [1, 2]}, index=[7, 7])
    keep = ["kept_label", "label"]
    assert [record.keep["label"] for record in model.score(table, keep=keep)] == ["cat", "dog"]
    made = model.score(table, keep=keep).to_frame()
    assert (made["kept_kept_label"].to_list(), made["kept_label"].to_list()) == (["cat", "dog"], [1, 2])
    for frame in (made, made[:1], model.score([jpeg()]).to_frame()):  # None, whether others have failed or not
        assert [value is None for value in frame["error_type"]] == [True, False][: len(frame)]
        assert [value is None for value in frame["label"]] == [False, True][: len(frame)]


def test_a_frame_keeps_values_as_they_are(model: Model) -> None:
    """Whatever stands in the other row; a missing one has no key in one input, and no value in the other."""
    whole: list[list[Any]] = [[2**53 + 1, None], [2**53 + 1, 0.5], [2**64, None], [2**63, -1]]
    pairs = [*whole, [True, None], [True, 1], ["x", None]]
    kept = {f"kept {number}": pair for number, pair in enumerate(pairs)}
    rows: list[dict[str, Any]] = [
        {"image": b"broken", **{name: pair[row] for name, pair in kept.items() if pair[row] is not None}}
        for row in range(2)
    ]
    columns = {name: pd.Series(pair, dtype=object) for name, pair in kept.items()}
    for given in (rows, pd.DataFrame({"image": [b"broken"] * 2, **columns})):
        made = model.score(given, keep=list(kept)).to_frame()
        for name, pair in kept.items():
            found = [None if value is pd.NA else value for value in made[name].to_list()]
            assert (found, [*map(type, found)]) == (pair, [*map(type, pair)])


def test_a_frame_without_pandas_is_refused(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UsageError, match=r"this needs pandas: pip install '\.\[pandas\]' in a clone of deit-batch"):
        model.score([jpeg()]).to_frame()


@pytest.mark.parametrize(
    ("said", "here"),
    [
        ("name it with --column. Columns seen: a", "name it with column=. Columns seen: a"),
        ("--keep image: the record has", "keep=image: the record has"),
        ("leave out --runtime onnx", "leave out runtime=onnx"),
        ("name one with --image-processor (a file)", "name one with image_processor= (a file)"),
        ("add --allow-pickle", "add allow_pickle=True"),
        ("--compile is for GPUs", "compile=True is for GPUs"),
        ("--revision is for the Hub", "revision= is for the Hub"),
        ("--allow-private-hosts permits it", "Limits(allow_private_hosts=True) permits it"),
        ("outside of --root", "outside of Limits(root=…)"),
        ("--fresh replaces it; a--b", "--fresh replaces it; a--b"),
    ],
)
def test_messages_name_arguments(said: str, here: str) -> None:
    assert as_python(said) == here


def test_errors_and_records_speak_of_arguments_and_of_places_in_what_is_given(model: Model, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"name it with column=\. Columns seen: pic, y"):
        model.score(pd.DataFrame({"pic": ["a.jpg"], "y": [1]}))
    with pytest.raises(UsageError, match="keep=image: the record has a field of that name already"):
        score(["a.jpg"], model="demo", keep=["image"])
    with pytest.raises(UsageError, match=r"^id2label=nowhere\.txt: "):
        load("demo", id2label="nowhere.txt")
    path = np.str_(tmp_path / "gone.jpg")
    given: list[Any] = [path, {"image": path}, {"pic": "a.jpg"}, io.BytesIO(jpeg()), {"image": io.BytesIO(jpeg())}]
    records = list(model.score([*given, "http://127.0.0.1/a.jpg"]))
    assert [type(record.image) for record in records[:2]] == [str, str]
    messages = [str(record.error and record.error.message) for record in records[2:]]
    assert messages[0].startswith("item 2: no column looks like the image; name it with column=.")
    assert messages[1] == "item 3 is no image, but of type BytesIO; give its .getvalue()"
    assert messages[2].endswith("; give its .getvalue()")
    assert "Limits(allow_private_hosts=True) permits it" in messages[3]
    with pytest.raises(UsageError, match=r"; give its \.getvalue\(\)$"):
        model.score(io.BytesIO(jpeg()))


def test_progress_is_shown_if_asked_for(photos: Path, model: Model, capsys: pytest.CaptureFixture[str]) -> None:
    list(model.score(photos, limit=3))
    assert capsys.readouterr() == ("", "")
    list(model.score(photos, limit=3, progress=True))
    out, err = capsys.readouterr()
    assert (out, err.rstrip().endswith("failed=0]"), "3/3" in err) == ("", True, True)
    list(model.embed((path for path in photos.iterdir()), progress=True))
    assert "40images" in capsys.readouterr().err
    wrong: Any = "yes"
    with pytest.raises(UsageError, match="progress is 'yes'; it must be True or False"):
        model.score(photos, progress=wrong)


@pytest.mark.parametrize(("start", "workers"), [("fork", 2), ("spawn", 1)])
def test_a_notebook(photos: Path, vit: Path, start: str, workers: int) -> None:
    program = NOTEBOOK.format(start=start, workers=workers, model=str(vit), photos=str(photos))
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr
    expected = [record.predictions[0]["score"] for record in score(photos, model=vit, limit=20, workers=0)]
    assert ended.stdout.splitlines() == [str(expected)] * 2


def test_what_a_call_can_not_have_is_refused_when_it_is_called(photos: Path, vit: Path) -> None:
    more: dict[str, Any]
    with load(vit, workers=0) as model:
        for more, message in (
            ({"device": "cpu"}, r"score\(\) has no option device; there are base, column, delimiter, id, keep, limit"),
            ({"top_k": 0}, "top_k is 0"),
            ({"topk": 3}, "do you mean top_k"),
        ):
            with pytest.raises(UsageError, match=message):
                model.score(photos, **more)
        with pytest.raises(UsageError, match="has only cls and mean"):
            model.embed(photos, features=["distillation"])
        with pytest.raises(UsageError, match="no such file or folder"):
            model.score(photos / "none")
    with pytest.raises(UsageError, match="the model is closed: load it again"):
        list(model.score(photos))
    more = {"top_k": 3}
    with pytest.raises(UsageError, match=r"load\(\) has no option top_k; "):
        load(vit, **more)


def test_weights_that_do_not_fit_are_found_out_at_once(photos: Path) -> None:
    with pytest.raises(CheckpointError):
        load(photos)
