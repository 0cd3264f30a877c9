"""HTML as values: a text becomes markup by :func:`tag` alone, which escapes whatever is no markup yet."""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape

# What a text must not do to the page that shows it: control characters, halves of characters that no UTF-8 file
# may hold, line ends that no reader sees, marks that turn the direction of what follows.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ufff9-\ufffb\ufffe\uffff]"
)
_VOID = frozenset({"br", "col", "hr", "img", "meta"})
_PICTURES = 0x2400  # Unicode's pictures of the control characters below 32 begin here


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


Child = str | None  # an Html stands as it is, another text is escaped, None is left out


def tag(name: str, /, *children: Child, **attributes: str | float | bool | None) -> Html:
    """An element.

    Args:
        name: of the element.
        children: what stands in it.
        attributes: ``class_`` is class, ``aria_label`` aria-label; None and False are left out, True has no value.
    """
    given = "".join(
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{escape(visible(str(value)))}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    if name in _VOID:
        return Html(f"<{name}{given}>")
    return Html(f"<{name}{given}>{joined(children)}</{name}>")


def joined(children: Iterable[Child], between: str = "") -> Html:
    """Several as one, each escaped unless it is HTML."""
    return Html(between.join(text(child) for child in children if child is not None))


def text(value: str) -> Html:
    """A text as HTML that shows it; HTML stays what it is."""
    return value if isinstance(value, Html) else Html(escape(visible(value)))


def visible(value: str) -> str:
    """A text in which every character that does something unseen is replaced by a picture or the name of it."""
    return _UNSEEN.sub(_picture, value)


def _picture(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code < 0x20:
        return chr(_PICTURES + code)
    return "␡" if code == 0x7F else f"[U+{code:04X}]"
