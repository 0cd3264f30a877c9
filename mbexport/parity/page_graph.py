"""One graph's part of a parity page: where errors arise, how they grow with the length, what they change."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

from mbexport.page.axes import Axis, count_axis, log_axis, ordered_axis
from mbexport.page.charts import Chart, Kind, Mark
from mbexport.page.document import badge, section
from mbexport.page.html import Child, Html, joined, tag
from mbexport.page.tables import Column, table
from mbexport.parity.report import Diagnosis, Disagreement, Figures, GraphParity, Histogram, StageError
from mbexport.parity.samples import PADDINGS

PADDING_KINDS = dict(
    zip(
        PADDINGS,
        (
            Kind("no padding", "circle", 1, -6), Kind("padding on the right", "up", 2, -2),
            Kind("padding on the left", "down", 3, 2), Kind("padding in between", "diamond", 4, 6),
        ),
        strict=True,
    )
)  # fmt: skip
STAGE_KINDS = {
    "global attention": Kind("global attention", "square", 2),
    "local attention": Kind("local attention", "circle", 1),
    "mlp": Kind("MLP", "up", 3),
}
OTHER_KIND = Kind("embeddings, norm, pooling, head", "diamond", 4)
FIGURE_COLUMNS = (
    Column("inputs"), Column("largest error"), Column("of the spread"),
    Column("least cosine"), Column("equal predictions"),
)  # fmt: skip
STAGE_COLUMNS = (
    Column("stage", figures=False), Column("kind", figures=False), Column("own error"), Column("limit"),
    Column("accumulated error"), Column("verdict", figures=False),
)  # fmt: skip
SHOWN_CASES, SHOWN_LETTERS = 8, 300  # disagreements before the rest is folded; of a text


def graph_section(graph: GraphParity, anchor: str) -> Html:
    """All figures of a graph.

    Args:
        graph: what was found of it.
        anchor: by which links find it.
    """
    diagnosis = graph.diagnosis
    return tag(
        "section",
        tag("h2", tag("span", graph.file), " ", badge(graph.passed)),
        tag("p", sentence(diagnosis.conclusion)) if diagnosis is not None and graph.passed else None,
        stages_content(diagnosis) if diagnosis is not None and diagnosis.stages else None,
        _lengths(graph) if graph.inputs else None,
        _figures_table("Error by length", "tokens", graph.by_length) if graph.by_length else None,
        _figures_table("Error by padding", "padding", graph.by_padding) if graph.by_padding else None,
        _histogram(graph.errors, graph.limits) if graph.errors is not None and any(graph.errors.counts) else None,
        _disagreements(graph) if graph.disagreeing or graph.disagreements else None,
        id=anchor,
    )


def error_text(value: float) -> str:
    """An error as all tables have it; what is no number is infinite."""
    return f"{value:.1e}" if math.isfinite(value) else "∞"


def sentence(words: str) -> str:
    """Words with a full stop at their end."""
    return words if words.endswith((".", "!", "?")) else f"{words}."


def share_text(value: float | None, digits: int = 2) -> str:
    """A share in percent; a dash where nothing is predicted. What is less than all is never rounded to all."""
    if value is None:
        return "-"
    shown = math.floor(value * 100 * 10**digits + 1e-9) / 10**digits
    return f"{shown:.{digits}f} %"


def cosine_text(value: float) -> str:
    """A cosine with the digits that tell it from 1."""
    return f"{value:.9f}" if math.isfinite(value) else "-"


def stages_content(diagnosis: Diagnosis) -> Html:
    """The errors of all stages: a chart, and the same as a table.

    Args:
        diagnosis: one with stages.
    """
    stages = diagnosis.stages
    values = [value for stage in stages for value in (stage.own, stage.accumulated, stage.limit)]
    chart = Chart(_stage_axis(stages), log_axis("error, over the reference's size", values))
    wrong = [number for number, stage in enumerate(stages) if stage.faulty]
    for number in wrong:
        chart.column(number)
    chart.line("error that has come together", "accumulated", [(n, s.accumulated) for n, s in enumerate(stages)])
    chart.dashes("limit of a stage's own error", "limit", [stage.limit for stage in stages])
    for kind, numbers in _by_kind(stages):
        chart.marks(kind, [Mark(number, stages[number].own, _stage_hint(stages[number])) for number in numbers])
    if wrong:
        chart.column_key("wrong by itself")
    found = f"{len(wrong)} of {len(stages)} stages are above their limit" if wrong else "no stage is above its limit"
    first = f", the first one {stages[wrong[0]].name}" if wrong else ""
    figure = chart.figure(
        "Error by layer",
        f"Own and accumulated error of {len(stages)} stages on a logarithmic scale; {found}{first}.",
        "Marks: the error that a stage makes where it is given the reference's input. Line: the error where the whole "
        "graph runs. Both are root mean squares over the reference's, of the worst token (of a graph of INT8 or FP8 "
        f"codes, of all together). Looked at: {diagnosis.inputs}.",
    )
    return joined((figure, tag("details", tag("summary", "The same in figures"), _stage_table(stages))))


def _stage_axis(stages: Sequence[StageError]) -> Axis:
    """Numbers of layers below their attention."""
    names: list[str | None] = []
    minor = []
    layers = sum(stage.name.endswith(".attn") for stage in stages)
    every = math.ceil(layers / 6)  # on a narrow screen
    for stage in stages:
        parts = stage.name.split(".")
        if parts[0] != "layers":
            names.append(stage.name if stage.name == "head" else None)  # others would stand in one another's way
            minor.append(False)
            continue
        names.append(parts[1] if parts[-1] == "attn" else None)
        number = int(parts[1]) if parts[1].isdecimal() else 0
        minor.append(number % every != 0 or number < every)
    return ordered_axis("layer, from the input to the output", names, minor)


def _by_kind(stages: Sequence[StageError]) -> Iterator[tuple[Kind, list[int]]]:
    for kind in (*STAGE_KINDS.values(), OTHER_KIND):
        numbers = [n for n, stage in enumerate(stages) if STAGE_KINDS.get(stage.kind, OTHER_KIND) == kind]
        if numbers:
            yield kind, numbers


def _stage_hint(stage: StageError) -> str:
    return (
        f"{stage.name} ({stage.kind}): own {error_text(stage.own)}, limit {error_text(stage.limit)}, "
        f"accumulated {error_text(stage.accumulated)}"
    )


def _stage_table(stages: Sequence[StageError]) -> Html:
    rows = [
        (
            stage.name, stage.kind, error_text(stage.own), error_text(stage.limit), error_text(stage.accumulated),
            badge(not stage.faulty),
        )
        for stage in stages
    ]  # fmt: skip
    return table("Error by layer", STAGE_COLUMNS, rows)


def _lengths(graph: GraphParity) -> Html:
    limit = graph.limits.get("max_error")
    errors = [item.max_error for item in graph.inputs]
    x = log_axis("tokens of the input", [item.length for item in graph.inputs], base=2, margin=0.4)
    y = log_axis("largest error of an output", errors if limit is None else [*errors, limit])
    chart = Chart(x, y)
    for padding in dict.fromkeys((*PADDINGS, *(item.padding for item in graph.inputs))):
        chosen = [item for item in graph.inputs if item.padding == padding]
        if chosen:
            marks = [
                Mark(i.length, i.max_error, f"{i.length} tokens, padding {i.padding}: {error_text(i.max_error)}")
                for i in chosen
            ]
            chart.marks(PADDING_KINDS.get(padding, Kind(padding, "square", 5)), marks)
    if limit is not None:
        chart.level("limit", limit)
    worst = max(graph.inputs, key=lambda item: item.max_error if math.isfinite(item.max_error) else math.inf)
    above = 0 if limit is None else sum(not error <= limit for error in errors)
    against = "" if limit is None else f" {above or 'none'} of them above the limit of {error_text(limit)},"
    return chart.figure(
        "Error against length",
        f"{len(errors)} inputs on logarithmic scales,{against} the largest error {error_text(worst.max_error)} "
        f"at {worst.length} tokens, padding {worst.padding}.",
        f"Each mark is an input, {len(errors):,} in all; those of one length stand side by side.",
    )


def _figures_table(title: str, name: str, groups: dict[str, Figures]) -> Html:
    rows = [
        (
            group, f"{figures.rows:,}", error_text(figures.max_error), error_text(figures.relative_error),
            cosine_text(figures.cosine), share_text(figures.agreement),
        )
        for group, figures in groups.items()
    ]  # fmt: skip
    return joined((tag("h3", title), table(title, (Column(name, figures=False), *FIGURE_COLUMNS), rows)))


def _histogram(errors: Histogram, limits: dict[str, float]) -> Html:
    limit = limits.get("max_error")
    spans = [(*edges, count) for edges, count in zip(pairwise(errors.edges), errors.counts, strict=True)]
    counted = [edge for low, high, count in spans if count for edge in (low, high)]
    x = log_axis("error of a single output", counted if limit is None else [*counted, limit])
    # One value must be seen beside millions: the counts are on a logarithmic scale, too.
    chart = Chart(x, count_axis("number of outputs", errors.counts))
    for low, high, count in spans:
        if count:
            span = f"from {error_text(low)} to {error_text(high)}"
            # The first count holds what is smaller, too, the last one what is larger or no number.
            span = f"of at most {error_text(high)}" if low == errors.edges[0] else span
            span = f"of {error_text(low)} or more, or no number" if high == errors.edges[-1] else span
            chart.bar(low, high, count, f"{count:,} outputs with an error {span}")
    if limit is not None:
        chart.level("limit", limit, across=False)
    total = sum(errors.counts)
    return chart.figure(
        "Histogram of errors",
        f"{total:,} outputs by their absolute error, on logarithmic scales, from {error_text(min(counted))} to "
        f"{error_text(max(counted))}.",
        f"All {total:,} single outputs of all inputs, by their absolute error.",
    )


def _disagreements(graph: GraphParity) -> Html:
    listed = graph.disagreements
    count = max(graph.disagreeing, len(listed))
    told = f"{count:,} prediction{'' if count == 1 else 's'} of this graph {'is' if count == 1 else 'are'} not the "
    told += "reference's" + (f"; {len(listed):,} are listed." if len(listed) < count else ".")
    cases = [_case(case) for case in listed]
    rest = cases[SHOWN_CASES:]
    folded = tag("details", tag("summary", f"{len(rest)} more"), tag("ul", *rest, class_="cases")) if rest else None
    shown = tag("ul", *cases[:SHOWN_CASES], class_="cases") if cases else None
    return section("Disagreements", tag("p", told), shown, folded, level=3)


def _case(case: Disagreement) -> Html:
    text: Child = tag("span", "tokens of several texts", class_="muted")
    if case.text is not None:
        cut = len(case.text) - SHOWN_LETTERS
        text = case.text[:SHOWN_LETTERS] + (f" … ({cut:,} more characters)" if cut > 0 else "")
    if case.text == "":
        text = tag("span", "the empty text", class_="muted")
    facts = [
        f"margin {case.margin:.2g}",
        f"{case.length:,} token{'' if case.length == 1 else 's'}",
        f"padding {case.padding}",
        *([] if case.token is None else [f"at token {case.token:,}"]),
    ]
    return tag(
        "li",
        tag("div", text, class_="given", dir="auto"),
        tag(
            "p", tag("bdi", _short(case.found)), " instead of ", tag("bdi", _short(case.expected)),
            tag("span", f" · {' · '.join(facts)}", class_="muted"), class_="labels",
        ),
    )  # fmt: skip


def _short(label: str) -> str:
    return label if len(label) <= 80 else f"{label[:80]}…"
