"""The page in Chromium, where there is one: its probabilities are EdgePredictor's, by mouse, finger and keyboard, and it asks for
nothing elsewhere."""

import functools
import importlib
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from ovr import EdgePredictor
from ovr.cli.main import main
from ovr.core.bundle import open_bundle
from ovr.errors import ArtifactError
from ovr.lifecycle.edge_export import EdgeOptions
from ovr.lifecycle.web_export import export_web
from ovr.web.runtime import runtime_files
from tests.conftest import logging_restored
from tests.web.pages import (
    CHROMIUM,
    FLAGS,
    LINES,
    Server,
    digits_bundle,
    image_bundle,
    people_bundle,
    table_bundle,
    text_bundle,
    times_bundle,
    wide_bundle,
)

ROOT = Path(__file__).parents[2]
CLOSE = 1e-5
PHONE = {"width": 360, "height": 740}
DIGITS = {  # as strokes of points across the paper
    "0": [[(0.5, 0.15), (0.3, 0.3), (0.28, 0.6), (0.45, 0.85), (0.65, 0.75), (0.72, 0.45), (0.65, 0.22), (0.5, 0.15)]],
    "1": [[(0.52, 0.15), (0.5, 0.85)]],
    "3": [[(0.3, 0.2), (0.5, 0.15), (0.66, 0.25), (0.6, 0.4), (0.45, 0.48), (0.62, 0.56), (0.68, 0.7), (0.55, 0.85), (0.3, 0.8)]],
    "4": [[(0.55, 0.12), (0.25, 0.6), (0.8, 0.6)], [(0.62, 0.4), (0.6, 0.9)]],
}
BARS = "[...document.querySelectorAll('#bars li')].map(item => item.dataset.id)"
PREDICT = "async rows => (await ovr.model.predict(rows)).probabilities.map(row => [...row])"
SHOWN = (
    "async () => { while (ovr.live.busy) await new Promise(done => setTimeout(done, 5));"
    " const { row, prediction } = ovr.live; return { row: ArrayBuffer.isView(row) ? [...row] : row,"
    " prob: prediction && [...prediction.probabilities[0]], said: document.querySelector('#decision').textContent }; }"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A page of each kind of input, and pages whose model, card or page.json was changed."""
    if CHROMIUM is None:
        pytest.skip("pages are looked at in Chromium, which is not on PATH: apt-get install chromium")
    pytest.importorskip("playwright.sync_api", reason="Chromium is driven by playwright: pip install playwright")
    try:
        runtime = runtime_files()
    except ArtifactError as error:
        pytest.skip(f"pages need onnxruntime-web, which npm fetches once: install npm ({error})")
    folder = tmp_path_factory.mktemp("pages")
    for name, make in (
        ("digits", digits_bundle),
        ("table", table_bundle),
        ("times", times_bundle),
        ("people", people_bundle),
        ("text", text_bundle),
        ("wide", wide_bundle),
        ("image", image_bundle),
    ):
        export_web(make(folder / "bundles" / name), folder / name, EdgeOptions(), runtime)
    shutil.copytree(folder / "digits", folder / "changed")
    model = folder / "changed" / "model.onnx"
    data = bytearray(model.read_bytes())
    data[len(data) // 2] ^= 1
    model.write_bytes(data)
    shutil.copytree(folder / "digits", folder / "mixed")
    card = (folder / "mixed" / "model_card.json").read_text()
    (folder / "mixed" / "model_card.json").write_text(card.replace('"abstain_below":0.5', '"abstain_below":0.1'))
    for name, kind in (("other", "constructor"), ("unfit", "table")):
        shutil.copytree(folder / "digits", folder / name)
        page = (folder / name / "page.json").read_text()
        (folder / name / "page.json").write_text(page.replace('"kind":"picture"', f'"kind":"{kind}"'))
    return folder


@pytest.fixture(scope="module")
def browser(folder):
    """A browser that reaches the pages alone, with all that it asked for and complained of."""
    playwright = importlib.import_module("playwright.sync_api")
    server = Server(folder)
    try:
        with playwright.sync_playwright() as run:
            browser = run.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
            browser.base, browser.elsewhere, browser.problems = server.url, [], []
            yield browser
            browser.close()
    finally:
        server.close()


@pytest.fixture(scope="module")
def open_page(browser):
    """Return a function that opens a page once, in a context of its own."""
    pages = {}

    def only_here(route):
        if route.request.url.startswith((f"{browser.base}/", "data:", "file:")):
            route.continue_()
        else:
            browser.elsewhere.append(route.request.url)
            route.abort()

    def opened(name, wait="main:not([hidden])", url=None, **settings):
        if name not in pages:
            page = browser.new_context(**settings).new_page()
            page.route("**/*", only_here)
            if name not in ("changed", "mixed", "other", "unfit", "file"):
                page.on("console", lambda message: browser.problems.append(message.text))
                page.on("pageerror", lambda error: browser.problems.append(str(error)))
            page.goto(url or f"{browser.base}/{name.partition(' ')[0]}/")
            page.wait_for_selector(wait)
            pages[name] = page
        return pages[name]

    return opened


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The digits' network, trained for a moment."""
    run = tmp_path_factory.mktemp("trained") / "run"
    with logging_restored():
        assert main(["train", "data=digits", "trainer.max_epochs=3", "report=false", f"hydra.run.dir={run}"]) == 0
    return open_bundle(run / "bundle")


@pytest.fixture
def digits(open_page):
    page = open_page("digits")
    page.locator("#paper").press("Delete")
    return page


def place(page, point):
    box = page.locator("#paper").bounding_box()
    return box["x"] + point[0] * box["width"], box["y"] + point[1] * box["height"]


def draw(page, strokes):
    for first, *rest in strokes:
        page.mouse.move(*place(page, first))
        page.mouse.down()
        for point in rest:
            page.mouse.move(*place(page, point), steps=2)
        page.mouse.up()


@functools.cache
def predictor(path):
    return EdgePredictor(path)


def compare(folder, name, shown, cohort=None):
    """Assert that what a page shows is what EdgePredictor says of the same row, and return that."""
    row = np.array(shown["row"], np.float32) if isinstance(shown["row"], list) else shown["row"]
    expected = predictor(folder / name).predict(row.reshape(1, *row.shape) if isinstance(row, np.ndarray) else [row], cohort=cohort)
    np.testing.assert_allclose(shown["prob"], expected.prob_BK[0], rtol=0, atol=CLOSE)
    (decided,) = expected.labels()
    said = [class_id for class_id in expected.card.taxonomy.ids if f" {class_id} (" in shown["said"]]
    assert said == list(decided) if len(decided) <= 10 else set(said) < set(decided) and len(said) == 10
    return expected


def test_what_is_drawn_by_mouse_is_counted_as_the_digits_are_and_known(folder, digits):
    assert digits.locator("#decision").inner_text() == "Nothing is drawn yet."
    for digit, strokes in DIGITS.items():
        digits.locator("#paper").press("Delete")
        draw(digits, strokes)
        shown = digits.evaluate(SHOWN)
        counts = np.array(shown["row"]).reshape(8, 8)
        assert (counts == counts.astype(int)).all()
        assert (counts.min(), counts.max()) == (0, 16)
        assert (counts[[0, 7]] > 0).any(axis=1).all()  # from top to bottom
        compare(folder, "digits", shown)
        assert shown["said"].startswith(f"Decided: {digit} ("), digit
    assert digits.locator("#bars .decided .name").all_inner_texts() == ["4"]
    digits.wait_for_selector("#live:text('Decided: 4')", state="attached")


def test_a_small_drawing_in_a_corner_gives_the_same_pixels_unless_it_is_to_stay_there(digits):
    draw(digits, DIGITS["3"])
    whole = digits.evaluate(SHOWN)["row"]
    digits.get_by_role("button", name="Clear").click()
    draw(digits, [[(0.02 + x / 3, 0.02 + y / 3) for x, y in DIGITS["3"][0]]])
    small = np.array(digits.evaluate(SHOWN)["row"])
    assert np.abs(small - whole).max() <= 3  # the mouse moves by whole pixels
    digits.get_by_label("Centre and scale").uncheck()
    left = np.array(digits.evaluate(SHOWN)["row"]).reshape(8, 8)
    digits.get_by_label("Centre and scale").check()
    assert left[:4, :4].sum() > 0
    assert left[4:].sum() == left[:, 4:].sum() == 0


def test_thresholds_and_the_limit_of_abstention_are_marked_and_abstention_is_said(folder, digits):
    card = open_bundle(folder / "bundles" / "digits").card
    marks = digits.evaluate("[...document.querySelectorAll('#bars .mark')].map(mark => parseFloat(mark.style.left))")
    np.testing.assert_allclose(marks, [100 * threshold for threshold in card.thresholds], atol=1e-3)
    limits = digits.evaluate("[...document.querySelectorAll('#bars .limit')].map(mark => mark.style.left)")
    assert limits == ["50%"] * 10
    draw(digits, [[(0.2, 0.2)], [(0.8, 0.8)]])  # two dots
    shown = digits.evaluate(SHOWN)
    expected = compare(folder, "digits", shown)
    assert expected.decision.abstained_B[0]
    best = expected.decision.top_BM[0, 0]
    said = f"No class: the highest probability, {expected.prob_BK[0, best]:.3f} of {card.taxonomy.ids[best]}, is below 0.5"
    assert shown["said"] == f"{said}, so the model abstains."
    widths = digits.evaluate("[...document.querySelectorAll('#bars .bar i')].map(bar => parseFloat(bar.style.width))")
    np.testing.assert_allclose(widths, 100 * expected.prob_BK[0], atol=1e-3)
    assert digits.locator("#bars .decided").count() == 0


def test_the_keyboard_draws_takes_back_and_clears(folder, digits):
    paper = digits.locator("#paper")
    paper.focus()
    for key in ("ArrowUp",) * 5 + (" ",) + ("ArrowDown",) * 10 + ("Enter",):
        digits.keyboard.press(key)
    shown = digits.evaluate(SHOWN)
    compare(folder, "digits", shown)
    assert shown["said"].startswith("Decided: 1 (")
    assert digits.evaluate("document.querySelector('#input [role=status]').textContent") == "Pen up"
    for key in ("ArrowRight", "ArrowRight", " ", "ArrowUp", "Enter"):
        digits.keyboard.press(key)
    assert digits.evaluate(SHOWN)["row"] != shown["row"]
    digits.keyboard.press("z")
    assert digits.evaluate(SHOWN)["row"] == shown["row"]
    digits.keyboard.press("Delete")
    assert digits.evaluate(SHOWN)["row"] is None
    assert digits.locator("#results.stale").count() == 1


@pytest.mark.parametrize(
    "end",
    [
        lambda page: page.keyboard.press("Delete"),
        lambda page: page.keyboard.press("z"),
        lambda page: page.get_by_role("button", name="Clear").dispatch_event("click"),  # by another finger
        lambda page: page.get_by_role("button", name="Example 1", exact=True).dispatch_event("click"),
        lambda page: page.keyboard.press(" "),
    ],
    ids=["Delete", "Z", "Clear", "an example", "the keyboard's pen"],
)
def test_a_stroke_that_is_ended_otherwise_goes_on_only_once_the_pointer_was_lifted(browser, digits, end):
    digits.mouse.move(*place(digits, (0.5, 0.2)))
    digits.mouse.down()
    digits.mouse.move(*place(digits, (0.5, 0.4)))
    end(digits)
    ended = digits.evaluate(SHOWN)["row"]
    digits.mouse.move(*place(digits, (0.8, 0.8)), steps=3)
    assert digits.evaluate(SHOWN)["row"] == ended
    digits.mouse.up()
    draw(digits, [[(0.3, 0.5), (0.7, 0.5)]])
    assert digits.evaluate(SHOWN)["row"] not in (None, ended)
    assert browser.problems == []


def test_examples_are_the_reference_rows_and_many_rows_go_through_the_model(folder, digits):
    x = np.load(folder / "bundles" / "digits" / "reference" / "x.npy")
    for button in digits.get_by_role("button", name="Example").all()[:3]:
        button.click()
        shown = digits.evaluate(SHOWN)
        assert shown["row"] in x.tolist()
        compare(folder, "digits", shown)
    prob = digits.evaluate(PREDICT, x.tolist())
    np.testing.assert_allclose(prob, predictor(folder / "digits").predict_proba(x), rtol=0, atol=CLOSE)


def test_a_finger_draws_on_a_phone_and_nothing_is_wider_than_it(folder, open_page):
    page = open_page("digits touch", viewport=PHONE, has_touch=True, is_mobile=True, color_scheme="dark")
    session = page.context.new_cdp_session(page)
    for (first, *rest), end in ((DIGITS["3"][0], "touchEnd"),):
        for kind, point in (("touchStart", first), *(("touchMove", point) for point in rest)):
            x, y = place(page, point)
            session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y}]})
        session.send("Input.dispatchTouchEvent", {"type": end, "touchPoints": []})
    shown = page.evaluate(SHOWN)
    compare(folder, "digits", shown)
    assert shown["said"].startswith("Decided: 3 (")
    assert page.evaluate("[document.documentElement.scrollWidth, scrollY]") == [PHONE["width"], 0]
    page.touchscreen.tap(*place(page, (0.1, 0.9)))
    assert page.evaluate(SHOWN)["row"] != shown["row"]
    back, ink = page.evaluate("[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]")
    assert sum(map(int, back[4:-1].split(","))) < 150 < 600 < sum(map(int, ink[4:-1].split(",")))


def test_a_form_has_a_field_a_column_and_says_beside_it_what_is_wrong(folder, open_page):
    page = open_page("table")
    compare(folder, "table", page.evaluate(SHOWN))
    page.get_by_label("age").fill(" 41 ")
    page.get_by_label("income").fill("1234,5")
    page.get_by_label("job").select_option("teacher")
    page.get_by_label("owner").check()
    page.get_by_label("since").fill("2012-03-11")
    page.get_by_label("city").fill("city 07")
    shown = page.evaluate(SHOWN)
    cells = {"age": " 41 ", "income": "1234,5", "job": "teacher", "owner": "yes", "since": "2012-03-11", "city": "city 07"}
    assert shown["row"] == cells
    compare(folder, "table", shown)
    page.get_by_label("age").fill("")
    page.get_by_label("job").select_option("not known")
    page.get_by_label("city").fill("Atlantis")
    page.get_by_label("since").fill("")
    shown = page.evaluate(SHOWN)
    assert shown["row"] == {**cells, "age": None, "job": None, "city": "Atlantis", "since": None}
    compare(folder, "table", shown)
    for field, text, message in (
        ("income", "99999", "as in the training rows"),
        ("income", "", "expected a number"),
        ("age", "x", "expected a finite"),
    ):
        page.get_by_label(field).fill(text)
        assert page.evaluate(SHOWN)["prob"] is None
        wrong = page.locator(".field", has=page.get_by_label(field)).locator(".wrong")
        assert message in wrong.inner_text()
        assert page.get_by_label(field).get_attribute("aria-invalid") == "true"
        page.get_by_role("button", name="Typical values").click()
        assert wrong.inner_text() == ""
    for _ in range(3):
        page.get_by_role("button", name="Random values").click()
        compare(folder, "table", page.evaluate(SHOWN))
    page.set_viewport_size(PHONE)
    said = page.locator("#decision").bounding_box()  # above the long form's end, whatever is scrolled to
    assert said["y"] + said["height"] == PHONE["height"]
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]


def test_buttons_fill_times_by_their_formats_and_leave_a_field_that_they_have_no_value_for(folder, open_page):
    page = open_page("times")
    city = page.get_by_label("city")
    assert page.locator(".field", has=city).locator(".wrong").inner_text() == "expected a text, as in every training row"
    typical = {"due": "04.08.2021", "seen": "08/04/21 04:05 PM", "at": "2021-08-04T16:05:06"}
    assert page.evaluate(SHOWN)["row"] == {**typical, "city": None}
    city.fill("Köln")
    for button in ("Random values",) * 3 + ("Typical values",):
        page.get_by_role("button", name=button).click()
        shown = page.evaluate(SHOWN)
        assert shown["row"]["city"] == "Köln"
        compare(folder, "times", shown)
    assert shown["row"] == {**typical, "city": "Köln"}
    page.get_by_label("due").fill("2021-08-03")
    due = page.locator(".field", has=page.get_by_label("due"))
    assert due.locator(".hint").inner_text() == "%d.%m.%Y; 03.02.2019 to 03.02.2024"
    assert due.locator(".wrong").inner_text() == "expected a time of the form %d.%m.%Y"
    city.fill("")
    assert page.evaluate(SHOWN)["said"] == "No answer: put right due, city."
    page.set_viewport_size(PHONE)
    at = page.get_by_label("at", exact=True)
    assert at.evaluate("field => field.scrollWidth - field.clientWidth") == 0
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]


def test_the_example_of_the_docs_runs_beside_a_page(browser, folder, open_page):
    (example,) = re.findall(r"```js\n(.*?)```", (ROOT / "docs" / "web_core.md").read_text(encoding="utf-8"), re.DOTALL)
    found = "window.found = { problems, decisions, abstained, prob: probabilities.map(row => [...row]) };"
    (folder / "people" / "example.js").write_text(f"{example}\n{found}", encoding="utf-8")
    html = '<!doctype html><link rel="icon" href="data:,"><script type="module" src="example.js"></script><p>Example'
    (folder / "people" / "example.html").write_text(html)
    page = open_page("example", wait="p", url=f"{browser.base}/people/example.html")
    page.wait_for_function("window.found")
    said = page.evaluate("found")
    assert said["problems"] == page.evaluate(re.search(r"check\(.*?; // (.*)", example)[1])
    expected = predictor(folder / "people").predict([{"age": "35", "sex": "F"}])
    np.testing.assert_allclose(said["prob"], expected.prob_BK, rtol=0, atol=CLOSE)
    assert said["decisions"] == [list(ids) for ids in expected.labels()]
    assert said["abstained"] == expected.decision.abstained_B.tolist()


def test_texts_are_typed(folder, open_page):
    page = open_page("text")
    assert page.evaluate(SHOWN)["row"] is None
    for text in LINES:
        page.get_by_role("textbox").fill("")
        page.get_by_role("textbox").press_sequentially(text)
        shown = page.evaluate(SHOWN)
        assert shown["row"] == text
        compare(folder, "text", shown)
    texts = [*LINES, "they stole my card!", "", "ÄÖÜ naïve\u00a0 cafe\u0301 ﬁne 東京タワー", "a" * 300]
    np.testing.assert_allclose(page.evaluate(PREDICT, texts), predictor(folder / "text").predict_proba(texts), rtol=0, atol=CLOSE)


def test_of_many_classes_the_most_probable_are_shown_and_a_filter_finds_the_others(folder, open_page):
    page = open_page("wide")
    expected = compare(folder, "wide", page.evaluate(SHOWN))
    order = np.argsort(-expected.prob_BK[0], kind="stable")[:50]
    assert page.evaluate(BARS) == [expected.card.taxonomy.ids[k] for k in order]
    page.get_by_label("Filter").fill("CLASS 11")
    assert sorted(page.evaluate(BARS)) == sorted(["class 11", *(f"class {k}" for k in range(110, 120))])
    assert "(11 match)" in page.locator("#shown").inner_text()
    page.get_by_role("textbox").fill("1 2 three 4 5 6")
    assert "Number 3 is three" in page.locator("#numbers-wrong").inner_text()
    page.get_by_role("textbox").fill("1, 2; 3\n4 5")
    assert page.locator("#numbers-wrong").inner_text() == "5 numbers; expected 6."
    page.get_by_role("textbox").fill("1, 2; 3\n4 5 -6e-1")
    shown = page.evaluate(SHOWN)
    np.testing.assert_array_equal(np.float32(shown["row"]), np.float32([1, 2, 3, 4, 5, -0.6]))
    pooled = compare(folder, "wide", shown)
    page.get_by_label("sex").select_option("M")
    own = compare(folder, "wide", page.evaluate(SHOWN), cohort="M")
    assert np.abs(own.prob_BK - pooled.prob_BK).max() > 100 * CLOSE


def test_a_picture_comes_from_a_file(folder, open_page):
    image = pytest.importorskip("PIL.Image")
    page = open_page("image")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    file = io.BytesIO()
    image.fromarray(pixels).save(file, "PNG")
    page.locator("#file").set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": file.getvalue()})
    page.wait_for_selector("#results:not(.stale)")
    shown = page.evaluate(SHOWN)
    expected = predictor(folder / "image").predict([file.getvalue()])
    np.testing.assert_allclose(shown["prob"], expected.prob_BK[0], rtol=0, atol=CLOSE)
    page.locator("#file").set_input_files({"name": "b.png", "mimeType": "image/png", "buffer": b"none"})
    page.wait_for_selector(".wrong:has-text('b.png cannot be taken')")


def test_it_tells_what_the_model_is_and_every_control_has_a_name(folder, digits, open_page):
    card = open_bundle(folder / "bundles" / "digits").card
    assert digits.title() == "0, 1, 2, 3, 4, 5, 6, 7, 8 or 9"
    facts = digits.locator("#model")
    facts.locator("summary").click()
    assert card.bundle_sha256 in facts.inner_text()
    assert facts.locator("tbody tr").all_inner_texts()[3].split() == ["3", "1", f"{card.thresholds[3]:g}"]
    for page in (digits, open_page("table"), open_page("text"), open_page("wide")):
        tree = page.locator("body").aria_snapshot()
        unnamed = [
            line
            for line in tree.splitlines()
            if line.strip().rstrip(":") in ("- button", "- textbox", "- checkbox", "- combobox", "- application")
        ]
        assert unnamed == []
        page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
        assert page.locator("[aria-live=polite]").count() == 1
    digits.locator("#paper").press("Tab")
    assert digits.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("changed", "model.onnx was changed or cut short: its digest is not the one in card.json"),
        ("mixed", "the model card is not the one in model.onnx"),
        ("other", "page.json names the input constructor; expected one of numbers, picture, table, text"),
        ("unfit", "This page cannot be used: "),  # its form cannot be built: the model has no columns
    ],
)
def test_a_model_or_a_card_that_was_changed_is_refused(open_page, name, said):
    page = open_page(name, wait="#failure:not([hidden])")
    assert said in page.locator("#failure").inner_text()
    assert not page.locator("#start, main, footer").filter(visible=True).count()


def test_a_class_s_name_does_not_turn_the_words_around_it(digits):
    isolated = "async name => (await import('./results.js')).isolated(name)"
    assert digits.evaluate(isolated, "a cat") == "a cat"
    assert digits.evaluate(isolated, "a\u2069\u202etac") == "atac"
    assert digits.evaluate(isolated, "\u05d7\u05ea\u05d5\u05dc") == "\u2068\u05d7\u05ea\u05d5\u05dc\u2069"


def test_opened_as_a_file_it_says_how_to_serve_it(folder, open_page):
    page = open_page("file", wait=".unserved", url=(folder / "digits" / "index.html").as_uri())
    assert page.locator("#state").inner_text().startswith("This page was opened as a file")
    assert "python -m http.server" in page.locator("#start").inner_text()
    assert not page.locator("main").is_visible()


@pytest.mark.exhaustive
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_network_in_fewer_bits_has_the_probabilities_of_edge_predictor(trained, folder, open_page, precision):
    name = f"digits_{precision}"
    gate = [] if precision == "fp32" else ["data=digits", "rows=calib", "margin=0.5"]
    args = ["export", f"bundle={trained.path}", f"out={folder / name}", "target=web", f"precision={precision}", *gate]
    assert main(args) == 0
    assert json.loads((folder / name / "card.json").read_bytes())["precision"]["backbone"] == precision
    x = np.load(trained.path / "reference" / "x.npy")
    prob = open_page(name).evaluate(PREDICT, x.tolist())
    np.testing.assert_allclose(prob, predictor(folder / name).predict_proba(x), rtol=0, atol=CLOSE)


def test_nothing_was_asked_for_elsewhere_and_nothing_went_wrong(browser, open_page):
    page = open_page("digits")
    with page.expect_console_message(lambda message: "Content Security Policy" in message.text):
        page.evaluate("fetch('https://example.org/').catch(() => {})")  # the page's own policy stops it
    assert browser.elsewhere == []
    said = [problem for problem in browser.problems if "example.org" not in problem]
    assert said == []
