"""Pages in a real browser, Chromium: they load nothing, run nothing, fit and can be read; `make interop` gets it."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mbexport.page.document import document
from mbexport.page.html import Html
from mbexport.page.quality import quality_content
from mbexport.parity.page import Facts, page
from mbexport.parity.report import ParityReport
from tests import page_reports
from tests.interop.chromium import Chromium, chromium

pytestmark = pytest.mark.interop
BUILD = Path(__file__).parents[2] / "build"
SHOTS = BUILD / "pages"
PRINTED = 703  # pixels of CSS between the margins of an A4 page: 186 mm
ELSEWHERE = "http://127.0.0.1:9/picture.png"  # of nobody

# Texts whose contrast with what is behind them is below 4.5, as WCAG 2 counts it.
FAINT = """
(() => {
  const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => {
    const [r, g, b] = parts(colour).slice(0, 3).map((c) => c / 255).map(
      (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if ((parts(colour)[3] ?? 1) > 0) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const found = [];
  for (const element of document.body.querySelectorAll("*")) {
    const texts = [...element.childNodes].filter((node) => node.nodeType === 3 && node.data.trim());
    if (!texts.length || !element.checkVisibility() || element.closest("title, desc")) continue;
    const style = getComputedStyle(element);
    const colour = element instanceof SVGElement ? style.fill : style.color;
    const [a, b] = [light(colour), light(behind(element))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) found.push([element.outerHTML.slice(0, 80), colour, behind(element)]);
  }
  return found;
})()
"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    facts = page_reports.facts(folder / "bundle", passed=False)
    int8 = document("INT8", quality_content(page_reports.quality_facts()))
    texts = {
        "holding": page(page_reports.holding(), facts),
        "failing": page(page_reports.failing(), facts),
        "hostile": page(page_reports.hostile(), facts),
        "empty": page(ParityReport(True, "", "", 0, ()), Facts()),
        "int8": int8,
    }
    for name, text in texts.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in texts}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    with chromium(BUILD / "chromium" / "chromium", tmp_path_factory.mktemp("profile")) as running:
        yield running


def show(browser: Chromium, file: Path, scheme: str = "light", width: int = 1280, media: str = "") -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.call("Emulation.setEmulatedMedia", media=media, features=features)
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.call("Emulation.setDeviceMetricsOverride", **size)
    browser.open(file.as_uri())


def requests(browser: Chromium) -> list[str]:
    sent = [event["params"] for event in browser.events if event["method"] == "Network.requestWillBeSent"]
    return [str(params["request"]["url"]) for params in sent]


def complaints(browser: Chromium) -> list[Any]:
    methods = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
    return [event["params"] for event in browser.events if event["method"] in methods]


def is_too_wide(browser: Chromium) -> bool:
    wide = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
    return bool(browser.evaluate(wide))


def save(browser: Chromium, name: str, width: int) -> None:
    """For people to look at."""
    SHOTS.mkdir(parents=True, exist_ok=True)
    height = browser.evaluate("document.documentElement.scrollHeight")
    clip = {"x": 0, "y": 0, "width": width, "height": min(height, 6000), "scale": 1}
    shot = browser.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
    (SHOTS / f"{name}.png").write_bytes(base64.b64decode(shot["data"]))


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["holding", "failing", "hostile", "empty", "int8"])
def test_it_loads_nothing_fits_and_can_be_read(
    name: str, scheme: str, width: int, browser: Chromium, pages: dict[str, Path]
) -> None:
    show(browser, pages[name], scheme, width)
    assert requests(browser) == [pages[name].as_uri()]
    assert complaints(browser) == []
    assert not is_too_wide(browser)
    assert browser.evaluate(FAINT) == []
    browser.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    assert not is_too_wide(browser)
    assert browser.evaluate(FAINT) == []
    save(browser, f"{name}-{scheme}-{width}", width)


@pytest.mark.parametrize(
    ("name", "word", "charts"),
    [("holding", "PASSED", 7), ("failing", "FAILED", 8), ("hostile", "FAILED", 8), ("empty", "NOTHING COMPARED", 0)],
)
@pytest.mark.parametrize("width", [1280, 390])
def test_verdict_and_charts_are_seen(
    name: str, word: str, charts: int, width: int, browser: Chromium, pages: dict[str, Path]
) -> None:
    show(browser, pages[name], width=width)
    assert word in browser.evaluate("document.querySelector('.verdict .word').innerText")
    top, bottom = browser.evaluate(
        "(({top, bottom}) => [top, bottom])(document.querySelector('.word').getBoundingClientRect())"
    )
    assert 0 <= top < bottom <= 900
    boxes = browser.evaluate(
        "[...document.querySelectorAll('svg[role=img]')].map((svg) => svg.getBoundingClientRect().width)"
    )
    assert len(boxes) == charts
    assert all(box > 0.75 * min(width, 1088) for box in boxes)
    letters = browser.evaluate(
        "[...document.querySelectorAll('svg[role=img] text')].map((each) => each.getBoundingClientRect().height)"
    )
    assert all(height == 0 or height >= 12 for height in letters)  # 0: left out where the screen is narrow
    inside = "[...document.querySelectorAll('svg[role=img] text')].every((each) => "
    inside += "(({left, right}) => left >= 0 && right <= innerWidth)(each.getBoundingClientRect()))"
    assert browser.evaluate(inside)


def test_light_and_dark_differ_and_print_is_light(browser: Chromium, pages: dict[str, Path]) -> None:
    colours = "(({color, backgroundColor}) => [color, backgroundColor])(getComputedStyle(document.body))"
    found = []
    for scheme, media in (("light", ""), ("dark", ""), ("dark", "print")):
        show(browser, pages["failing"], scheme, media=media)
        found.append(browser.evaluate(colours))
    light, dark, printed = found
    assert light[0] != dark[0]
    assert light[1] != dark[1]
    assert printed == light
    assert browser.evaluate(FAINT) == []


@pytest.mark.parametrize("name", ["holding", "failing", "hostile", "int8"])
def test_on_paper_nothing_is_cut_or_folded(name: str, browser: Chromium, pages: dict[str, Path]) -> None:
    folded = (
        "[...document.querySelectorAll('details > :not(summary)')].filter((each) => !each.checkVisibility()).length"
    )
    show(browser, pages[name])
    assert browser.evaluate(folded) > 0  # on screens
    show(browser, pages[name], "dark", PRINTED, "print")
    assert not is_too_wide(browser)
    wide = "[...document.querySelectorAll('table')].filter((table) => table.getBoundingClientRect().right > innerWidth)"
    assert browser.evaluate(f"{wide}.map((table) => table.parentElement.ariaLabel)") == []
    assert browser.evaluate(folded) == 0
    browser.call("Emulation.clearDeviceMetricsOverride")
    paper = {"paperWidth": 8.27, "paperHeight": 11.69, "printBackground": True}
    printed = base64.b64decode(browser.call("Page.printToPDF", **paper)["data"])
    assert printed.startswith(b"%PDF-")
    SHOTS.mkdir(parents=True, exist_ok=True)
    (SHOTS / f"{name}.pdf").write_bytes(printed)


def test_texts_of_others_do_not_run(browser: Chromium, pages: dict[str, Path]) -> None:
    show(browser, pages["hostile"])
    assert browser.evaluate("document.title") != "run"
    assert browser.evaluate("document.querySelectorAll('script, img, iframe, object, link').length") == 0
    assert browser.evaluate("document.querySelectorAll('main').length") == 1
    assert browser.evaluate("document.querySelectorAll('.cases > li > .given').length") == 3 * len(page_reports.HOSTILE)
    sizes = browser.evaluate(
        "[...document.querySelectorAll('.given')].map((each) => each.getBoundingClientRect().height)"
    )
    assert max(sizes) < 300


@pytest.fixture
def spoilt(tmp_path: Path, pages: dict[str, Path]) -> Any:
    """A page with something put into it, its policy left or taken away."""

    def make(addition: str, *, policy: bool = True) -> Path:
        text = pages["holding"].read_text()
        if not policy:
            text = text.replace("Content-Security-Policy", "x-nothing")
        file = tmp_path / "spoilt.html"
        file.write_text(text.replace("</main>", f"{addition}</main>"))
        return file

    return make


def test_the_checks_find_what_they_are_for(browser: Chromium, spoilt: Any) -> None:
    """Negative controls: each of the checks above, on a page that has the fault."""
    picture = f'<img src="{ELSEWHERE}">'
    show(browser, spoilt(picture, policy=False))
    assert ELSEWHERE in requests(browser)
    assert complaints(browser)
    show(browser, spoilt(picture))
    assert any("Content Security Policy" in str(entry) for entry in complaints(browser))
    script = "<script>document.title = 'run'</script>"
    show(browser, spoilt(script, policy=False))
    assert browser.evaluate("document.title") == "run"
    show(browser, spoilt(script))
    assert browser.evaluate("document.title") != "run"
    show(browser, spoilt('<div style="width:1000px">wide</div>'), width=390)
    assert is_too_wide(browser)
    show(browser, spoilt('<p style="color:#999">faint</p>'))
    assert [found[0] for found in browser.evaluate(FAINT)] == ['<p style="color:#999">faint</p>']


def test_html_passes_where_it_says_so(browser: Chromium, tmp_path: Path) -> None:
    """Control of the escaping: what is given as HTML does become elements."""
    file = tmp_path / "page.html"
    file.write_text(document("t", Html("<b>bold</b>"), "<b>plain</b>"))
    show(browser, file)
    assert browser.evaluate("[document.querySelectorAll('b').length, document.body.innerText.trim()]") == [
        1,
        "bold<b>plain</b>",
    ]
