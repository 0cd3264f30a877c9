"""Pages without a browser: well formed, closed to the outside, and with each part exactly where its data is."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from mbexport.engines.report import EngineReport
from mbexport.page.axes import count_axis, log_axis
from mbexport.page.document import document
from mbexport.page.html import Html, tag, visible
from mbexport.page.tables import Column, bars, table
from mbexport.parity.page import NOT_RUN, Facts, facts_of, page
from mbexport.parity.report import Diagnosis, Disagreement, GraphParity, Histogram, ParityReport
from mbexport.quantize.quality import Limits, Quality
from mbexport.quantize.report import GraphReport, QuantizationReport, SiteReport
from mbexport.quantize.report import page as quality_page
from mbexport.quantize.search import Sensitivity
from tests import page_reports

ACTIVE = {"script", "img", "link", "iframe", "object", "embed", "base", "form"}
VOID = {"br", "col", "hr", "img", "meta"}


class Reader(HTMLParser):
    """What a page is made of; a tag that is closed in the wrong place is an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((name, dict(attributes)))
        assert len(dict(attributes)) == len(attributes)
        if name not in VOID:
            self.open.append(name)

    def handle_endtag(self, name: str) -> None:
        assert self.open.pop() == name

    def handle_data(self, text: str) -> None:
        if "style" not in self.open:
            self.texts.append(text)

    def sections(self) -> set[str]:
        return {str(given["id"]) for name, given in self.tags if name == "section" and "id" in given}

    def charts(self) -> list[str]:
        return [str(given["aria-label"]) for name, given in self.tags if given.get("role") == "img"]


def check(text: str) -> Reader:
    """Read a page that must be complete in itself."""
    text.encode()  # no half of a character
    reader = Reader(text)
    assert not {name for name, _ in reader.tags} & ACTIVE
    ids = [given["id"] for _, given in reader.tags if "id" in given]
    assert len(ids) == len(set(ids))
    for _, given in reader.tags:
        assert not [key for key in given if key.startswith("on") or key in ("src", "srcset", "action", "xlink:href")]
        if "href" in given:
            assert str(given["href"]).removeprefix("#") in ids
        for key in ("style", "class", "id", "x", "y", "content"):
            assert "//" not in (given.get(key) or "")
    (style,) = re.findall("<style>(.*?)</style>", text, re.DOTALL)
    assert "url(" not in style
    assert "@import" not in style
    assert "//" not in style
    return reader


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Facts:
    return page_reports.facts(tmp_path_factory.mktemp("page") / "bundle")


@pytest.mark.parametrize("report", [page_reports.holding, page_reports.failing, page_reports.hostile])
def test_pages_are_well_formed_and_closed_to_the_outside(report: Any, facts: Facts) -> None:
    for given in (facts, Facts()):
        check(page(report(), given))


def test_controls_of_the_reader() -> None:
    """What the checks above are for, each refused."""
    good = page(page_reports.holding(), Facts())
    for fault in (
        "<p>never closed", "</div>", '<img src="data:,">', '<a href="https://example.com">x</a>',
        '<p style="background:url(//example.com)">x</p>', '<p onclick="x()">x</p>', '<p id="graphs">twice</p>',
        "<script>1</script>",
    ):  # fmt: skip
        with pytest.raises(AssertionError):
            check(good.replace("</main>", f"{fault}</main>"))


def test_the_smallest_report_has_its_page() -> None:
    reader = check(page(ParityReport(True, "", "", 0, ()), Facts()))
    assert reader.sections() == {"environment", "repeat"}
    assert " NOTHING COMPARED" in reader.texts  # nothing has passed either
    assert reader.charts() == []
    assert " FAILED" in check(page(ParityReport(False, "", "", 0, ()), Facts())).texts


def test_a_graph_without_details_has_its_page() -> None:
    """As earlier versions reported them: no inputs, no histogram, no diagnosis."""
    full = page_reports.holding().graphs[0]
    bare = GraphParity(full.file, "fp32", True, {}, 0.0, full.overall, {}, {})
    reader = check(page(ParityReport(True, "r", "t", 1, (bare, bare)), Facts()))
    assert reader.sections() == {"graphs", "graph-1", "graph-2", "environment", "repeat"}
    assert reader.charts() == []
    assert "by stages" in reader.texts


def test_each_section_is_there_when_its_data_is(facts: Facts) -> None:
    report = page_reports.failing()
    everything = {
        "diagnosis", "graphs", "graph-1", "graph-2", "graph-3", "int8", "engines", "environment", "skipped", "repeat",
    }  # fmt: skip
    assert check(page(report, facts)).sections() == everything
    assert check(page(report, Facts())).sections() == everything - {"int8", "engines"}
    assert check(page(page_reports.holding(), facts)).sections() == everything - {"diagnosis"}
    assert "skipped" not in check(page(dataclasses.replace(report, skipped={}), facts)).sections()
    damaged = dataclasses.replace(facts, quality=None, unreadable=("reports/x.json: no JSON",))
    reader = check(page(report, damaged))
    assert reader.sections() == everything - {"int8"} | {"unreadable"}
    assert "reports/x.json: no JSON" in reader.texts


@pytest.mark.parametrize(
    ("without", "gone"),
    [
        ({"inputs": ()}, "Error against length"),
        ({"errors": None}, "Histogram of errors"),
        ({"diagnosis": None}, "Error by layer"),
    ],
)
def test_each_chart_is_there_when_its_data_is(without: dict[str, Any], gone: str) -> None:
    report = page_reports.failing()
    graph = report.graphs[0]
    one = dataclasses.replace(report, graphs=(graph,))
    titles = [label.split(".")[0] for label in check(page(one, Facts())).charts()]
    assert titles == ["Error by layer", "Error against length", "Histogram of errors"]
    less = dataclasses.replace(report, graphs=(dataclasses.replace(graph, **without),))
    assert [label.split(".")[0] for label in check(page(less, Facts())).charts()] == [t for t in titles if t != gone]


def test_it_says_what_went_wrong_and_where() -> None:
    text = page(page_reports.failing(), Facts())
    texts = "\n".join(check(text).texts)
    for part in ("FAILED", "layers.7.attn", "reaches 63 tokens", "5.1e-07", "seen in the values", "64 predictions"):
        assert part in texts, part
    assert text.count('class="wrong"') == 3  # columns of the charts, one by a window, two by an overflow
    assert "3 graphs compared, 2 of them wrong; 1 not compared." in texts
    assert "no text was longer than 40 tokens." in texts
    assert texts.index("FAILED") < texts.index("Where it goes wrong") < texts.index("Environment")


def test_a_failed_graph_without_diagnosis_names_its_limits() -> None:
    report = page_reports.failing()
    graph = dataclasses.replace(
        report.graphs[0], diagnosis=None, limits={"max_error": 2.4e-4, "cosine": 0.99999, "agreement": 0.999}
    )
    text = page(dataclasses.replace(report, graphs=(graph,)), Facts())
    assert "its largest error is 1.4e-01, allowed is 2.4e-04" in text
    assert "asked for is 0.99999" in text
    assert "96.15 % of its predictions are equal, asked for are 99.90 %" in text
    assert "where it goes wrong was not found" in text


def test_conclusion_alone_where_a_graph_does_not_name_its_values() -> None:
    """A graph that somebody else made: searched by its outputs, no stages."""
    report = page_reports.failing()
    searched = Diagnosis("76 inputs, outputs alone", (), (), "errors begin above 65 tokens: a window.")
    graph = dataclasses.replace(report.graphs[0], diagnosis=searched)
    reader = check(page(dataclasses.replace(report, graphs=(graph,)), Facts()))
    assert "diagnosis" in reader.sections()
    assert reader.texts.count("errors begin above 65 tokens: a window.") >= 1
    assert not any("Error by layer" in label for label in reader.charts())


def test_values_that_are_no_numbers_are_shown_as_such() -> None:
    text = page(page_reports.failing(), Facts())
    reader = check(text)
    assert reader.texts.count("∞") > 5
    assert not re.search(r"\b(nan|inf)\b", re.sub("<style>.*</style>", "", text, flags=re.DOTALL))
    report = page_reports.failing()
    worst = dataclasses.replace(
        report.graphs[2].overall, max_error=math.nan, relative_error=math.nan, cosine=math.nan, agreement=None
    )
    graph = dataclasses.replace(report.graphs[2], overall=worst, ratio=math.nan)
    check(page(dataclasses.replace(report, graphs=(graph,)), Facts()))


def test_texts_of_others_are_shown_and_nothing_else() -> None:
    text = page(page_reports.hostile(), Facts())
    reader = check(text)
    shown = "".join(reader.texts)
    assert page_reports.HOSTILE[0] in shown
    assert "\u202e" not in text
    assert "[U+202E]gnp.exe" in shown
    assert "␀␇␛[31mcontrol␡[U+009B]" in shown
    assert "[U+D800]" in shown
    assert "(9,700 more characters)" in shown
    assert "w" * 301 not in shown
    assert "the empty text" in shown
    assert reader.texts.count("b\n") == 0  # a line break of a text is no line of the page's


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("a<b>&\"'", "a&lt;b&gt;&amp;&quot;&#x27;"), ("tab\there\n", "tab\there\n"), ("\r", "␍"),
        ("👩\u200d👧 naïve 東京", "👩\u200d👧 naïve 東京"), ("\ud83d", "[U+D83D]"), ("\u2028", "[U+2028]"),
        (Html("<b>"), "<b>"),
    ],
)  # fmt: skip
def test_escape(given: str, expected: str) -> None:
    assert tag("p", given) == f"<p>{expected}</p>"


def test_attributes() -> None:
    assert tag("a", "x", href='"><script>', class_="b", aria_label=None, hidden=True, open=False) == (
        '<a href="&quot;&gt;&lt;script&gt;" class="b" hidden>x</a>'
    )
    assert tag("hr") == "<hr>"
    assert visible("\x00") == "␀"


def test_disagreements_of_one_and_of_tokens() -> None:
    report = page_reports.holding()
    case = Disagreement(None, 512, "left", 17, "B-PER", "O", 0.001)
    graph = dataclasses.replace(report.graphs[0], disagreements=(case,), disagreeing=1)
    text = page(dataclasses.replace(report, graphs=(graph,)), Facts())
    assert "1 prediction of this graph is not the reference&#x27;s." in text
    assert "tokens of several texts" in text
    assert "at token 17" in text
    many = dataclasses.replace(graph, disagreements=(case,) * 30, disagreeing=3000)
    text = page(dataclasses.replace(report, graphs=(many,)), Facts())
    assert "3,000 predictions of this graph are not the reference&#x27;s; 30 are listed." in text
    assert "<summary>22 more</summary>" in text


def test_marks_that_fall_together_are_one() -> None:
    """So a page of ten thousand texts stays a page."""
    report = page_reports.holding()
    graph = report.graphs[0]
    many = dataclasses.replace(graph, inputs=graph.inputs * 200)
    few, lots = (len(page(dataclasses.replace(report, graphs=(g,)), Facts())) for g in (graph, many))
    assert lots < 1.1 * few


def test_axes() -> None:
    errors = log_axis("error", [0.0, 3e-7, 2e-2, math.inf])
    assert [tick.text for tick in errors.ticks] == ["1e-1", "1e-2", "1e-3", "1e-4", "1e-5", "1e-6", "1e-7", "0", "∞"]
    assert errors.place(0.0) == 0
    assert errors.place(math.inf) == errors.place(math.nan) == 1
    assert 0 < errors.place(3e-7) < errors.place(2e-2) < 1
    lengths = log_axis("tokens", [1, 8192], base=2)
    assert [tick.text for tick in lengths.ticks][:3] == ["8192", "4096", "2048"]
    assert [tick.minor for tick in lengths.ticks][:3] == [False, True, False]
    assert lengths.place(1) == 0
    assert lengths.place(8192) == 1
    assert log_axis("tokens", [1, 8192], base=2, margin=0.4).place(1) > 0
    assert log_axis("one value", [1.0]).place(1.0) == 0
    assert [tick.text for tick in log_axis("nothing", []).ticks] == ["10", "1"]
    counts = count_axis("counts", [0, 1, 250_000])
    assert counts.place(1) > 0
    assert [tick.text for tick in counts.ticks] == ["1", "10", "100", "1000", "1e4", "1e5", "1e6"]


def test_ends_of_the_histogram_say_what_else_they_hold() -> None:
    report = page_reports.holding()
    errors = Histogram((1e-9, 1e-8, 1e-7, 1e-6), (7, 0, 1_000))
    graph = dataclasses.replace(report.graphs[0], errors=errors)
    texts = check(page(dataclasses.replace(report, graphs=(graph,)), Facts())).texts
    assert "7 outputs with an error of at most 1.0e-08" in texts
    assert "1,000 outputs with an error of 1.0e-07 or more, or no number" in texts


def test_tables_keep_figures_to_the_right() -> None:
    found = table("t", (Column("name", figures=False), Column("n")), [("a", "1")])
    assert '<th scope="row">a</th><td class="n">1</td>' in found
    shown = bars("b", "name", "error", [("a", 0.5), ("b", 1.0), ("c", math.inf)])
    assert re.findall(r"width:([\d.]+)%", shown) == ["50.0", "100.0", "100.0"]
    assert "width:0.0%" in bars("b", "name", "error", [("a", 0.0)])


def test_facts_of_a_bundle(tmp_path: Path) -> None:
    found = facts_of(page_reports.bundle_with_reports(tmp_path / "bundle"))
    assert found.unreadable == ()
    assert found.quality is not None
    assert found.quality.graphs[0].file == "onnx/model_int8.onnx"
    assert [(engine.entry.gpu, engine.current) for engine in found.engines] == [("a100", True), ("rtx4090", True)]
    assert found.engines[0].build is not None
    assert found.engines[0].build.loose == ("0 (global)",)
    text = page(page_reports.holding(), found)
    reader = check(text)
    assert NOT_RUN in reader.texts
    assert "88 of 88 in int8, as the engine's own program has them" in reader.texts
    assert "1 to 64 texts of 1 to 512 tokens, fastest at 32 x 128; activations 310.0 MB" in reader.texts


def test_there_are_no_facts_of_what_is_no_bundle(tmp_path: Path) -> None:
    assert facts_of(tmp_path) == facts_of(tmp_path / "model.onnx") == Facts()


def _quality(bundle: Path, change: Any) -> None:
    path = bundle / "reports" / "quality-int8.json"
    report = json.loads(path.read_text())
    change(report)
    path.write_text(json.dumps(report))


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda b: (b / "reports/quality-int8.json").write_text("{"), "quality-int8.json: .*not valid JSON"),
        (lambda b: (b / "reports/quality-int8.json").write_bytes(b"\xff\xfe\x00"), "not valid JSON"),
        (lambda b: (b / "reports/quality-int8.json").write_text("[]"), "expected an object"),
        (lambda b: _quality(b, lambda r: r.pop("graphs")), r"graphs is None, expected a list"),
        (lambda b: _quality(b, lambda r: r["sites"].append(3)), r"sites\[88\] is 3, expected an object"),
        (lambda b: _quality(b, lambda r: r.update(notes=[1])), "notes is .*expected a list of texts"),
        (lambda b: _quality(b, lambda r: r["graphs"][0]["quality"].update(error=0.5)), "of other graphs"),
        (lambda b: (b / "reports/engine-a100-fp16.json").unlink(), "engine-a100-fp16.json: .*does not exist"),
        (lambda b: (b / "reports/engine-a100-fp16.json").write_text("{}"), "engine is None, expected an object"),
        (
            lambda b: (b / "reports/engine-a100-fp16.json").write_text('{"engine": {"sha256": "other"}}'),
            "another build",
        ),
        (lambda b: (b / "mbexport.json").write_text("{}"), "mbexport.json: .*schema_version"),
    ],
)
def test_damaged_reports_are_told_and_no_error(damage: Any, told: str, tmp_path: Path) -> None:
    bundle = page_reports.bundle_with_reports(tmp_path / "bundle")
    damage(bundle)
    found = facts_of(bundle)
    assert len(found.unreadable) == 1
    assert re.search(told, found.unreadable[0]), found.unreadable
    assert "unreadable" in check(page(page_reports.holding(), found)).sections()


def test_an_engine_of_another_graph_says_so(tmp_path: Path) -> None:
    bundle = page_reports.bundle_with_reports(tmp_path / "bundle")
    manifest = (bundle / "mbexport.json").read_text()
    (bundle / "mbexport.json").write_text(manifest.replace('"graph_sha256": "bbb', '"graph_sha256": "abb'))
    text = page(page_reports.holding(), facts_of(bundle))
    assert text.count("an earlier onnx/engine_fp16.onnx, which the bundle no longer holds") == 2


def names(kind: type) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


def test_reports_of_these_tests_have_the_fields_that_are_written() -> None:
    report = page_reports.quality_report()
    assert report.keys() == names(QuantizationReport)
    assert report["graphs"][0].keys() == names(GraphReport)
    assert report["graphs"][0]["quality"].keys() == names(Quality)
    assert report["sites"][0].keys() == names(SiteReport)
    assert report["ranking"][0].keys() == names(Sensitivity)
    built = page_reports.engine_report(page_reports.engine("a100", "fp16", "8.0"))
    assert built.keys() == names(EngineReport) | {"fused_attention"}


def test_the_page_of_quantization() -> None:
    quality = Quality(60, 60, None, None, None, math.inf, math.nan, 0.5)
    graph = GraphReport("onnx/<model>.onnx", False, ("embeddings",), quality, ("outputs are not finite",))
    sites = (SiteReport("layers.0.attn.in", 0.5, 1.0, 1.0, 0.25, 0.125, by_row=True),)
    report = QuantizationReport(
        False, (graph,), sites, (Sensitivity("embeddings", 0.5),), 20, 60, 64, Limits(), 10, 0, ("a <note>",)
    )
    reader = check(quality_page(report, "<model>"))
    texts = "\n".join(reader.texts)
    for part in ("FAILED", "INT8 of <model>", "a <note>", "outputs are not finite", "0.125", "What each part costs"):
        assert part in texts, part
    calm = dataclasses.replace(report, passed=True, graphs=(), sites=(), ranking=(), notes=())
    assert "No graph failed its gate" in "".join(check(quality_page(calm, "m")).texts)


def test_a_document_has_the_policy_and_the_style_inside() -> None:
    text = document("t", "x")
    assert text.startswith('<!doctype html>\n<html lang="en">')
    (policy,) = (g["content"] for name, g in check(text).tags if g.get("http-equiv") == "Content-Security-Policy")
    assert str(policy).startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:")
    assert "@media print" in text
    assert "prefers-color-scheme: dark" in text
