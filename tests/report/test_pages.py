"""The pages in a real browser: Debian's chromium, driven by playwright; accessibility by axe-core, from npm."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import re
import tarfile
import urllib.request
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pytest
from helpers import LABELS, jpeg
from made_up_results import Json, invoke, record, write
from playwright.sync_api import Browser, Page, ViewportSize, expect

from deit_batch.output.spreadsheet import harmless

AXE = "https://registry.npmjs.org/axe-core/-/axe-core-4.14.1.tgz"
AXE_SHA512 = "FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ=="
HOSTILE = [
    "</script><script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 1'>",
    "<!--<script>",
    '" onmouseover="window.hacked = 1',
    "{{ 7 * 7 }} &lt;b&gt;",
    "\u202egpj.exe",
]

PHONE: ViewportSize = {"width": 390, "height": 844}
DESKTOP: ViewportSize = {"width": 1400, "height": 900}


@pytest.fixture(scope="module")
def axe(pytestconfig: pytest.Config) -> str:
    """The script of axe-core (MPL-2.0), fetched once."""
    file = pytestconfig.cache.mkdir("axe-core") / Path(AXE).with_suffix(".js").name
    if not file.exists():
        try:
            with urllib.request.urlopen(AXE, timeout=60) as answer:
                archive = answer.read()
        except OSError as error:
            pytest.skip(f"no axe-core: {AXE} can't be fetched: {error}")
        assert base64.b64encode(hashlib.sha512(archive).digest()).decode() == AXE_SHA512
        with tarfile.open(fileobj=io.BytesIO(archive)) as members:
            script = members.extractfile("package/axe.min.js")
            assert script
            file.write_bytes(script.read())
    return file.read_text()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of 120 records: pictures, labels, mistakes, failures, and names and labels that are not kind."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "imgs").mkdir()
    records: list[Json] = []
    for n in range(120):
        name = folder / "imgs" / f"{n:03}.jpg"
        name.write_bytes(jpeg(n))
        best = LABELS[n % 3]
        score = 0.3 + n / 200
        truth = LABELS[n % 2]
        records.append(record(n, str(name), (best, score), (LABELS[4], 1 - score), label=truth))
    for n in (7, 8, 9):
        records[n] = record(n, str(folder / "imgs" / f"{n:03}.jpg"), error=f"can't be decoded: {HOSTILE[n - 7]}")
    for n, text in enumerate(HOSTILE):
        records.append(record(120 + n, text, (text, 0.29 - n / 100), label=text))
    predictions = write(folder / "p.jsonl", records)
    done = invoke("report", predictions, "--out", folder / "report.html", "--thumbnails", "8", "--attention", "demo")
    assert done.exit_code == 0, done.output
    return folder / "report.html"


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("comparison")
    old = [record(n, f"{n:03}.jpg", (LABELS[n % 3], 0.5)) for n in range(60)]
    new = [record(n, f"{n:03}.jpg", (LABELS[n % 2], 0.3 + n / 100)) for n in range(5, 65)]
    new[9] = record(14, "014.jpg", error=HOSTILE[0])
    for each in (*old, *new):
        each["label"] = LABELS[0]
    done = invoke(
        "compare", write(folder / "old.jsonl", old), write(folder / "new.jsonl", new), "--out", folder / "c.html"
    )
    assert done.exit_code == 0, done.output
    return folder / "c.html"


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluation")
    rows, records = ["image,label"], []
    for n in range(30):
        (folder / f"{n:02}.jpg").write_bytes(jpeg(n))
        rows.append(f"{n:02}.jpg,{LABELS[n % 3]}")
        predictions = [(LABELS[n % 2], 0.7), (HOSTILE[0], 0.2), (LABELS[2], 0.1)]
        records.append(record(n, str(folder / f"{n:02}.jpg"), *predictions))
    (folder / "l.csv").write_text("\n".join(rows))
    command: list[str | Path] = ["--input", folder / "l.csv", "--predictions", write(folder / "p.jsonl", records)]
    done = invoke("evaluate", *command, "--out", folder / "e", "--fail-under", "accuracy=0.9")
    assert done.exit_code == 4, done.output
    return folder / "e" / "report.html"


PageOf = Callable[[int], Path]


@pytest.fixture(scope="module")
def page_of(tmp_path_factory: pytest.TempPathFactory) -> PageOf:
    """A report of so many records, with pictures of 400 at the most, made once."""
    folder = tmp_path_factory.mktemp("pages")
    pictures = [jpeg(n) for n in range(8)]

    @cache
    def page_of(number: int) -> Path:
        for n in range(number if number <= 400 else 0):
            file = folder / f"camera-{n % 7}" / f"{n:04}.jpg"
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(pictures[n % 8])
        width = 4 if number <= 400 else 6
        records = [record(n, f"camera-{n % 7}/{n:0{width}}.jpg", (LABELS[n % 5], n / number)) for n in range(number)]
        for each in records if number <= 400 else []:
            each["label"] = LABELS[each["index"] % 5 + each["index"] % 2 - 1]  # that of every other one is right
        out = folder / f"{number}.html"
        done = invoke("report", write(folder / f"{number}.jsonl", records), "--out", out, "--images", folder)
        assert done.exit_code == 0, done.output
        return out

    return page_of


BROKEN_WORDS = """() => {
  const broken = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    if (!node.parentElement.checkVisibility() || node.parentElement.closest("script, style, .unseen, dd")) continue;
    for (const word of node.data.matchAll(/[^\\s/\\\\_.\\-]+/g)) {
      if (word[0].length > 16) continue;
      const range = document.createRange();
      range.setStart(node, word.index);
      range.setEnd(node, word.index + word[0].length);
      const lines = new Set([...range.getClientRects()].map((box) => Math.round(box.top)));
      if (lines.size > 1) broken.push(word[0]);
    }
  }
  return broken;
}"""
"""Words that a line ends within. Values of the run, such as digests, have no words."""


class Opened:
    """A page as it is opened from the disk, and what the browser had to say about it."""

    def __init__(self, browser: Browser, file: Path, **context: Any) -> None:
        self.context = browser.new_context(**{"viewport": DESKTOP, **context})
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(20_000)
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append(f"dialog: {dialog.message}"))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(file.as_uri())
        expect(self.page.locator("#count")).not_to_be_empty()

    def __enter__(self) -> Page:
        return self.page

    def __exit__(self, *args: object) -> None:
        assert self.complaints == []
        assert [url for url in self.requests if not url.startswith(("file:", "data:", "blob:"))] == []
        assert sum(url.startswith("file:") for url in self.requests) == 1
        self.context.close()


def names(page: Page) -> list[str]:
    return page.locator("#table tbody tr td:first-child").all_text_contents()


def column(page: Page, number: int) -> list[str]:
    return page.locator(f"#table tbody tr td:nth-child({number})").all_text_contents()


def test_it_filters_by_name_label_and_score(browser: Browser, report: Path) -> None:
    with Opened(browser, report) as page:
        expect(page.locator("#count")).to_have_text("126 images")
        page.get_by_label("Name or failure contains").fill("IMGS/11")
        expect(page.locator("#count")).to_have_text("10 of 126 images")
        assert [name[-7:] for name in names(page)] == [f"{n}.jpg" for n in range(110, 120)]
        page.get_by_label("Label", exact=True).select_option(label=f"{LABELS[0]} (39)")
        expect(page.locator("#count")).to_have_text("3 of 126 images")
        page.get_by_role("button", name="Clear filters").click()
        page.get_by_label("Score at least").fill("0.85")
        page.get_by_label("Score at most").fill("0.86")
        expect(page.locator("#count")).to_have_text("3 of 126 images")
        assert column(page, 3) == ["0.8500", "0.8550", "0.8600"]
        page.get_by_role("button", name="Clear filters").click()
        page.get_by_label("Name or failure contains").fill("can't be decoded")
        expect(page.locator("#count")).to_have_text("3 of 126 images")
        assert column(page, 5) == ["failed"] * 3


def test_what_stands_above_filters_the_table(browser: Browser, report: Path) -> None:
    with Opened(browser, report) as page:
        page.locator(".chart button").first.click()
        expect(page.locator("#count")).to_contain_text(" of 126 images")
        assert len(set(column(page, 2))) == 1
        page.locator(".histogram button").nth(5).click()
        expect(page.locator("#count")).to_have_text("20 of 126 images")  # 0.5 to 0.5999
        page.get_by_role("button", name=re.compile("show can taken for milk bottle")).click()
        assert set(column(page, 2)) == {"milk bottle"}
        assert set(column(page, 4)) == {"can"}
        page.get_by_role("button", name=re.compile("show those that failed")).first.click()
        expect(page.locator("#count")).to_have_text("1 of 126 images")


def test_filters_find_what_they_count(browser: Browser, tmp_path: Path) -> None:
    """Failures that are not told apart, or of a message of two lines; a label that is in no row of the sample."""
    records = [record(n, f"{n}.jpg", error=f"broken\n{n}") for n in range(210)]
    out = tmp_path / "r.html"
    assert invoke("report", write(tmp_path / "p.jsonl", records), "--out", out).exit_code == 0
    with Opened(browser, out) as page:
        page.get_by_role("button", name="10: show those that failed").click()
        expect(page.locator("#count")).to_have_text("10 of 210 images")
        page.get_by_role("button", name=re.compile("show those that failed by DecodeError: broken 7$")).click()
        expect(page.locator("#count")).to_have_text("1 of 210 images")
    records = [record(n, f"{n}.jpg", ("can" if n else "jar", 0.5)) for n in range(50)]
    records[1]["predictions"][0]["score"] = 0.6
    options = ["--rows", "1", "--gallery", "0"]
    assert invoke("report", write(tmp_path / "p.jsonl", records), "--out", out, *options).exit_code == 0
    with Opened(browser, out) as page:
        page.locator(".chart button").filter(has_text="jar").click()
        expect(page.locator("#count")).to_have_text("0 of 1 image")
        page.get_by_role("button", name="Clear filters").click()
        expect(page.locator("#count")).to_have_text("1 image")


def test_it_sorts_and_turns_pages(browser: Browser, report: Path) -> None:
    with Opened(browser, report) as page:
        score = page.get_by_role("columnheader", name="Score")
        score.get_by_role("button").click()
        expect(score).to_have_attribute("aria-sort", "descending")
        assert column(page, 3) == sorted(column(page, 3), reverse=True)
        score.get_by_role("button").click()
        expect(score).to_have_attribute("aria-sort", "ascending")
        assert column(page, 3)[:2] == ["0.2400", "0.2500"]
        page.get_by_role("button", name="Next page").click()
        page.get_by_role("button", name="Next page").click()
        expect(page.locator("#page")).to_have_text("Page 3 of 3")
        assert len(names(page)) == 26
        assert column(page, 3)[-3:] == ["", "", ""]  # what failed stands last
        expect(page.get_by_role("button", name="Next page")).to_be_disabled()
        page.get_by_role("columnheader", name="Image").get_by_role("button").click()
        expect(page.locator("#page")).to_have_text("Page 1 of 3")
        assert names(page) == sorted(names(page))


def test_it_opens_an_image_by_keyboard(browser: Browser, report: Path) -> None:
    with Opened(browser, report) as page:
        page.keyboard.press("Tab")
        expect(page.get_by_role("link", name="Skip to the table")).to_be_focused()
        page.keyboard.press("Enter")
        page.get_by_label("Name or failure contains").focus()
        page.keyboard.type("119.jpg")
        expect(page.locator("#count")).to_have_text("1 of 126 images")
        page.get_by_role("button", name="Clear filters").press("Enter")
        row = page.locator("#table").get_by_role("button", name="003.jpg")
        row.press("Enter")
        dialog = page.get_by_role("dialog")
        expect(dialog.get_by_role("heading", name="003.jpg")).to_be_visible()
        expect(dialog).to_contain_text("wrong")
        assert dialog.locator(".bars .value").all_text_contents() == ["0.3150", "0.6850"]
        page.keyboard.press("ArrowLeft")
        expect(dialog.get_by_role("heading", name="002.jpg")).to_be_visible()
        page.keyboard.press("Escape")
        expect(dialog).to_be_hidden()
        expect(row).to_be_focused()
        page.locator("[data-open] img").last.click()  # a picture of those that stand out
        expect(dialog.get_by_role("img")).to_be_visible()
        assert dialog.get_by_role("img").evaluate("image => image.naturalWidth > 0")


def test_colours_of_what_a_model_looked_at_are_taken_away(browser: Browser, report: Path) -> None:
    with Opened(browser, report) as page:
        picture, tint = page.locator(".card .picture").first, page.locator(".card .tint").first
        expect(tint).to_be_visible()
        assert tint.bounding_box() == picture.bounding_box()
        tinted = picture.screenshot()
        switch = page.get_by_label("Colour the pictures")
        switch.focus()
        page.keyboard.press("Space")
        expect(tint).to_be_hidden()
        assert picture.screenshot() != tinted
        page.keyboard.press("Space")
        picture.click()
        expect(page.get_by_role("dialog").locator(".tint")).to_be_visible()


def test_names_and_labels_stay_text(browser: Browser, report: Path) -> None:
    with Opened(browser, report) as page:
        page.get_by_role("columnheader", name="Score").get_by_role("button").dblclick()
        shown = names(page)
        for text in HOSTILE:
            assert text in shown
            assert text in column(page, 2)
            assert page.locator(".card .name").filter(has_text=text).count() >= 1
            page.locator("#table tbody button").nth(shown.index(text)).click()
            expect(page.locator("#image-name")).to_have_text(text, use_inner_text=False)
            page.keyboard.press("Escape")
            page.locator("#table tbody tr").nth(shown.index(text)).hover()
        assert page.evaluate("window.hacked") is None
        assert page.locator("script").count() == 2
        assert page.locator("#table img, #table b, #table script").count() == 0


@pytest.mark.parametrize("which", ["report", "comparison", "evaluation", 0, 5, 400, 100_000])
def test_it_fits_any_screen_and_passes_axe(
    which: str | int, browser: Browser, axe: str, page_of: PageOf, request: pytest.FixtureRequest
) -> None:
    file = page_of(which) if isinstance(which, int) else request.getfixturevalue(which)
    with Opened(browser, file, viewport=DESKTOP) as page:
        page.evaluate(axe)
        check_screen(page, DESKTOP, "light", words=which != "report")
        check_screen(page, PHONE, "dark", words=which != "report")
        row = page.locator("#table tbody button")
        if row.count():
            row.first.click()
            assert violations(page) == [], "open"
            page.keyboard.press("Escape")
        if which not in ("comparison", 400):
            return
        page.emulate_media(color_scheme="light")
        assert violations(page, "{runOnly: ['color-contrast']}") == []
        page.set_viewport_size(DESKTOP)
        page.emulate_media(color_scheme="dark")
        assert violations(page, "{runOnly: ['color-contrast']}") == []


def check_screen(page: Page, viewport: ViewportSize, scheme: Literal["light", "dark"], *, words: bool) -> None:
    """Nothing sticks out, no column is left out, and no word is broken, if there are `words`."""
    page.set_viewport_size(viewport)
    page.emulate_media(color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == viewport["width"]
    for cell in page.locator("#table thead th, #table tbody tr:first-child td:not(:empty)").all():
        box = cell.bounding_box()
        assert box, "a column is left out"
        assert box["x"] + box["width"] <= viewport["width"]
    assert not words or page.evaluate(BROKEN_WORDS) == []
    assert violations(page) == [], "closed"


def violations(page: Page, options: str = "{}") -> list[tuple[str, str, list[str]]]:
    found = page.evaluate(f"axe.run({options}).then(found => found.violations)")
    return [(each["id"], each["help"], [node["html"][:120] for node in each["nodes"][:3]]) for each in found]


def test_flips_are_filtered(browser: Browser, comparison: Path) -> None:
    with Opened(browser, comparison) as page:
        page.get_by_role("button", name=re.compile("show those from milk bottle to can")).click()
        assert set(column(page, 2)) == {"milk bottle"}
        assert set(column(page, 4)) == {"can"}
        page.get_by_role("button", name="Clear filters").click()
        page.get_by_label("State").select_option(label="fails now (1)")
        expect(page.locator("#count")).to_contain_text("1 of ")
        page.locator("#table tbody button").click()
        expect(page.get_by_role("dialog")).to_contain_text(HOSTILE[0])
        page.keyboard.press("Escape")
        page.get_by_role("button", name="Clear filters").click()
        page.get_by_label("Right or wrong").select_option(label="now wrong (9)")
        expect(page.locator("#count")).to_contain_text("9 of ")
        assert set(column(page, 4)) == {"carton"}


def test_an_evaluation_shows_the_images_of_a_class(browser: Browser, evaluation: Path) -> None:
    with Opened(browser, evaluation) as page:
        expect(page.locator(".card img")).to_have_count(20)
        page.get_by_role("button", name=f"10: show those of {LABELS[2]}").click()
        expect(page.locator("#count")).to_have_text("10 of 30 images")
        assert set(column(page, 4)) == {LABELS[2]}
        page.get_by_role("button", name=f"5 images: show {LABELS[2]} taken for").first.click()
        expect(page.locator("#count")).to_have_text("5 of 30 images")
        page.locator("[data-open] img").first.click()
        expect(page.get_by_role("dialog")).to_contain_text("wrong")


def test_a_hundred_thousand_records_are_paged(browser: Browser, page_of: PageOf) -> None:
    with Opened(browser, page_of(100_000)) as page:
        expect(page.locator("#count")).to_have_text("100,000 images")
        expect(page.locator("#page")).to_have_text("Page 1 of 2,000")
        assert page.locator("#table tr").count() < 60
        page.get_by_label("Name or failure contains").fill("camera-3/0999")
        expect(page.locator("#count")).to_have_text("15 of 100,000 images")


def test_every_row_has_its_picture_and_its_file(browser: Browser, page_of: PageOf) -> None:
    with Opened(browser, page_of(400)) as page:
        page.get_by_label("Name or failure contains").fill("0077.jpg")  # no card has it
        expect(page.locator("#count")).to_have_text("1 of 400 images")
        page.locator("#table tbody button").click()
        dialog = page.get_by_role("dialog")
        assert dialog.locator("img").evaluate("image => image.decode().then(() => image.naturalWidth)") == 224
        link = str(dialog.get_by_role("link", name="Open the image itself").get_attribute("href"))
        assert Path(url2pathname(urlsplit(link).path)).read_bytes() == jpeg(77 % 8)


def test_classes_are_shown_by_their_surest_and_least_sure_pictures(browser: Browser, page_of: PageOf) -> None:
    with Opened(browser, page_of(400)) as page:
        first = page.locator(".class").first
        scores = [float(score) for score in first.locator("li .value").all_text_contents()]
        assert len(scores) == 6
        assert scores[:3] == sorted(scores[:3], reverse=True) > sorted(scores[3:])
        first.get_by_role("heading").first.get_by_role("button").click()
        expect(page.locator("#count")).to_contain_text(" of 400 images")
        assert len(set(column(page, 2))) == 1
        first.locator("li button").first.press("Enter")
        expect(page.get_by_role("dialog").locator("img")).to_be_visible()


def test_a_threshold_says_what_it_keeps(browser: Browser, page_of: PageOf) -> None:
    with Opened(browser, page_of(400)) as page:
        says = page.locator("#threshold-says")
        expect(says).to_have_text("At 0.80: 20 % of the images kept (80 of 400), 50 % of them right")
        page.get_by_role("slider", name="Threshold").press("ArrowRight")
        expect(says).to_have_text("At 0.81: 19 % of the images kept (76 of 400), 50 % of them right")
        page.get_by_role("button", name="Show these").click()
        expect(page.locator("#count")).to_have_text("76 of 400 images")
        page.get_by_role("button", name="Show the others").click()
        expect(page.locator("#count")).to_have_text("324 of 400 images")
        page.get_by_role("slider", name="Threshold").fill("0")
        expect(says).to_contain_text("At 0.00: 100 % of the images kept (400 of 400)")
        page.get_by_role("button", name=re.compile("show those from 0.90 up")).click()
        expect(page.locator("#count")).to_have_text("40 of 400 images")


def test_the_rows_that_are_found_are_downloaded_for_a_spreadsheet(browser: Browser, tmp_path: Path) -> None:
    texts = [*HOSTILE, "=1+1", "+a", "-1", "-1e5", "@x", "'=1", "\tx", "＝1", "a,b", 'a"b', "a\nb", "''", "-"]
    records = [record(n, text, (text, 0.5)) for n, text in enumerate(texts)]
    records += [record(len(texts), "other", error="=cmd"), record(len(texts) + 1, None, ("can", 0.4))]
    out = tmp_path / "r.html"
    done = invoke("report", write(tmp_path / "p.jsonl", records), "--out", out, "--title", "Mine")
    assert done.exit_code == 0, done.output

    def rows(page: Page) -> list[dict[str, str]]:
        with page.expect_download() as download:
            page.get_by_role("button", name="Download these rows as CSV").click()
        assert download.value.suggested_filename == "Mine.csv"
        with open(download.value.path(), encoding="utf-8", newline="") as file:
            assert file.read(1) == "\ufeff"
            return list(csv.DictReader(file))

    with Opened(browser, out) as page:
        found = rows(page)
        assert [row["image"] for row in found] == [*map(harmless, texts), "other", ""]
        assert [row["label"] for row in found] == [*map(harmless, texts), "", "can"]
        assert found[-2] | {"image": ""} == {
            "image": "", "label": "", "score": "", "state": "failed", "failure": "DecodeError: =cmd",
        }  # fmt: skip
        page.get_by_label("Name or failure contains").fill("other")
        expect(page.locator("#count")).to_contain_text("1 of ")
        assert [row["image"] for row in rows(page)] == ["other"]


def test_without_javascript_all_but_the_table_is_there(browser: Browser, page_of: PageOf) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(page_of(400).as_uri())
    for name in ("Pictures by class", "Confidence", "Threshold", "Against the labels", "Failures", "The run"):
        expect(page.get_by_role("heading", name=name, exact=True)).to_be_visible()
    expect(page.locator(".small img").first).to_be_visible()
    expect(page.get_by_role("slider")).to_be_hidden()
    context.close()
