"""The pages in a real browser: Debian's chromium, driven by playwright; accessibility by axe-core, from npm."""

from __future__ import annotations

import base64
import hashlib
import io
import re
import tarfile
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from helpers import LABELS, jpeg
from made_up_results import Json, invoke, record, write
from playwright.sync_api import Browser, Page, expect

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

PHONE = {"width": 390, "height": 844}
DESKTOP = {"width": 1280, "height": 900}


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
    done = invoke("report", predictions, "--out", folder / "report.html", "--thumbnails", "8")
    assert done.exit_code == 0, done.output
    return folder / "report.html"


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("comparison")
    old = [record(n, f"{n:03}.jpg", (LABELS[n % 3], 0.5)) for n in range(60)]
    new = [record(n, f"{n:03}.jpg", (LABELS[n % 2], 0.3 + n / 100)) for n in range(5, 65)]
    new[9] = record(14, "014.jpg", error=HOSTILE[0])
    done = invoke(
        "compare", write(folder / "old.jsonl", old), write(folder / "new.jsonl", new), "--out", folder / "c.html"
    )
    assert done.exit_code == 0, done.output
    return folder / "c.html"


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
        expect(self.page.locator("#table tbody tr").first).to_be_visible()

    def __enter__(self) -> Page:
        return self.page

    def __exit__(self, *args: object) -> None:
        assert self.complaints == []
        assert [url for url in self.requests if not url.startswith(("file:", "data:"))] == []
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
        page.locator(".histogram button").nth(10).click()
        expect(page.locator("#count")).to_have_text("10 of 126 images")  # 0.5 to 0.5499
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
    options = ["--rows", "1", "--thumbnails", "0"]
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
        row = page.get_by_role("button", name="003.jpg")
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
        expect(dialog.locator("img")).to_be_visible()
        assert dialog.locator("img").evaluate("image => image.naturalWidth") == 224


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


@pytest.mark.parametrize("which", ["report", "comparison"])
@pytest.mark.parametrize(("scheme", "viewport"), [("light", DESKTOP), ("dark", PHONE)], ids=["desktop", "dark phone"])
def test_it_passes_axe(
    which: str, scheme: str, viewport: dict[str, int], browser: Browser, axe: str, request: pytest.FixtureRequest
) -> None:
    file = request.getfixturevalue(which)
    with Opened(browser, file, color_scheme=scheme, viewport=viewport) as page:
        width = page.evaluate("document.documentElement.scrollWidth")
        assert width == viewport["width"]  # nothing sticks out
        page.evaluate(axe)
        for state in ("closed", "open"):
            if state == "open":
                page.locator("#table tbody button").first.click()
            found = page.evaluate("axe.run().then(found => found.violations)")
            told = [(each["id"], each["help"], [node["html"][:120] for node in each["nodes"][:3]]) for each in found]
            assert told == [], state


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


def test_a_hundred_thousand_records_are_paged(browser: Browser, tmp_path: Path) -> None:
    records = (record(n, f"imgs/camera-{n % 7}/{n:06}.jpg", (LABELS[n % 5], n / 100_000)) for n in range(100_000))
    predictions = write(tmp_path / "p.jsonl", list(records))
    assert invoke("report", predictions, "--thumbnails", "0", "--out", tmp_path / "r.html").exit_code == 0
    with Opened(browser, tmp_path / "r.html") as page:
        expect(page.locator("#count")).to_have_text("100,000 images")
        expect(page.locator("#page")).to_have_text("Page 1 of 2,000")
        assert page.locator("tr").count() < 60
        page.get_by_label("Name or failure contains").fill("camera-3/0999")
        expect(page.locator("#count")).to_have_text("15 of 100,000 images")
