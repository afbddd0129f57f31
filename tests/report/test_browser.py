"""The page in Chromium, where there is one: what the script does, what is asked for, what the keyboard reaches."""

import shutil

import pytest

from ovr.report import contents
from tests.report.sample import written

CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
PHONE = {"width": 375, "height": 700}
FIRST_CELLS = "[...document.querySelectorAll('table.classes tbody tr')].filter(r => r.offsetParent).map(r => r.cells[0].innerText)"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("no chromium on PATH: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contents, "LOWEST", 1)  # heads with charts, which take their time
        patch.setattr(contents, "LEAST_CALIBRATED", 0)
        path = written(tmp_path_factory.mktemp("page"), 600, 120)
    with playwright.sync_playwright() as run:
        browser = run.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.problems, page.asked = [], []
        page.on("console", lambda message: page.problems.append(message.text))
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        page.on("request", lambda request: page.asked.append(request.url))
        page.goto(path.as_uri())
        yield page
        browser.close()


def number(cell):
    return float(cell.split()[0])  # an interval may follow


def column(page, name):
    header = page.get_by_role("columnheader", name=name, exact=True)
    at = header.evaluate("e => e.cellIndex")
    rows = page.evaluate(f"[...document.querySelectorAll('table.classes tbody tr')].map(r => r.cells[{at}].innerText)")
    return header, rows


def test_sorting_by_click_and_by_keyboard(page):
    header, rows = column(page, "F1")
    header.get_by_role("button").click()
    assert header.get_attribute("aria-sort") == "ascending"
    rising = [number(cell) for cell in column(page, "F1")[1]]
    assert rising == sorted(number(cell) for cell in rows)
    header.get_by_role("button").focus()
    page.keyboard.press("Enter")
    assert header.get_attribute("aria-sort") == "descending"
    assert [number(cell) for cell in column(page, "F1")[1]] == rising[::-1]
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    assert page.evaluate("document.activeElement.innerText") == "precision"
    assert page.locator("th[aria-sort=ascending]").count() == 1
    assert header.get_attribute("aria-sort") == "none"


def test_filter_and_show_all(page):
    assert len(page.evaluate(FIRST_CELLS)) == 100
    page.get_by_label("Filter").fill("CLASS 11")
    assert sorted(page.evaluate(FIRST_CELLS)) == sorted(["class 11", *(f"class {k}" for k in range(110, 120))])
    assert page.locator("#shown").inner_text() == "11 of 120 classes (11 match)"
    page.get_by_label("Filter").fill("")
    page.get_by_role("button", name="Show all 120").press("Enter")
    assert len(page.evaluate(FIRST_CELLS)) == 120
    page.get_by_role("button", name="Show 100").click()


def test_nothing_is_wrong_and_nothing_is_asked_for(page):
    assert page.problems == []
    assert [url for url in page.asked if not url.startswith(("file:", "data:"))] == []
    assert len([url for url in page.asked if url.startswith("file:")]) == 1
    assert page.title() == "Report"


def test_the_first_stop_of_the_keyboard_skips_to_the_report_and_focus_is_seen(page):
    page.evaluate("document.activeElement.blur(); window.scrollTo(0, 0)")
    page.reload()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_scrolls_down_only_and_text_stands_out(page, scheme):
    page.set_viewport_size(PHONE)
    page.emulate_media(color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    back, ink = page.evaluate("[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]")
    label = page.evaluate("getComputedStyle(document.querySelector('figure svg text:last-of-type')).fill")
    level = {name: sum(map(int, color[4:-1].split(","))) for name, color in (("back", back), ("ink", ink), ("label", label))}
    assert (level["back"] > 600) == (scheme == "light")
    assert abs(level["ink"] - level["back"]) > 400
    assert abs(level["label"] - level["back"]) > 250


def test_paper_has_labels_for_buttons_and_what_is_folded(page):
    page.set_viewport_size({"width": 1280, "height": 900})
    page.emulate_media(media="print")
    header = page.get_by_title("share of the other rows that the class was decided on")
    assert header.evaluate("e => getComputedStyle(e, '::before').content") == '"FPR"'
    assert not header.locator("button").is_visible()  # browsers leave buttons out of the heads of further pages
    size = "e => parseFloat(getComputedStyle(e).fontSize)"
    small, cell = (page.locator(name).first.evaluate(size) for name in ("td small", "td:has(small)"))
    assert small == pytest.approx(0.85 * cell, rel=0.01)
    for event, num_open in (("beforeprint", page.locator("details").count()), ("afterprint", 0)):
        page.evaluate(f"dispatchEvent(new Event('{event}'))")
        assert page.locator("details[open]").count() == num_open
    assert page.locator("details").count() > 0
    page.emulate_media(media="screen")
