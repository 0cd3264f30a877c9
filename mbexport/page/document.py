"""The document around a page's content: style inside, no script, nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files

from mbexport.page.charts import SPRITE
from mbexport.page.html import Child, Html, joined, tag

# Whatever slips into the page, no browser loads or runs it.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


def document(title: str, *content: Child) -> str:
    """A whole HTML file.

    Args:
        title: of the window.
        content: what stands in the body.
    """
    style = Html(files("mbexport.page").joinpath("style.css").read_text("utf-8"))
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", style),
    )
    return f"<!doctype html>\n{tag('html', head, tag('body', SPRITE, tag('main', *content)), lang='en')}\n"


def section(title: str, *content: Child, id_: str | None = None, level: int = 2) -> Html:
    """A section with its heading; ``id_`` lets a link find it."""
    return tag("section", tag(f"h{level}", title), *content, id=id_)


def paragraphs(texts: Sequence[str], class_: str | None = None) -> Html:
    """A paragraph of each."""
    return joined(tag("p", line, class_=class_) for line in texts)


def definitions(rows: Sequence[tuple[str, Child]]) -> Html:
    """Names and what they stand for; what is None or empty is left out."""
    return tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in rows if value))


def badge(passed: bool) -> Html:
    """A verdict in a word, a sign and a colour."""
    sign, word, class_ = ("✓", "passed", "pass") if passed else ("✗", "FAILED", "fail")
    return tag("span", tag("span", sign, aria_hidden="true"), f" {word}", class_=f"badge {class_}")
