"""The frame of a report: one HTML page that needs nothing but itself.

In: pieces of HTML. Out: a page that is readable on a phone, in the dark and on paper. No requests
to anywhere: styles are inside, fonts are the reader's own.
"""

from __future__ import annotations

from html import escape
from importlib.resources import files
from string import Template
from typing import Final

_TEMPLATE_FILE: Final = "report.html"


def render_page(title: str, lead: str, *sections: str, style: str = "") -> str:
    """Put a page together.

    Args:
        title: Text.
        lead: HTML: what the page says in a sentence or two.
        *sections: HTML; empty ones are left out.
        style: More CSS.
    """
    template = files("lrm_ext.analysis").joinpath(_TEMPLATE_FILE).read_text(encoding="utf-8")
    return Template(template).substitute(
        title=escape(title), lead=lead, sections="\n".join(filter(None, sections)), style=style
    )


def section(heading: str, *content: str) -> str:
    """A part of the page with a heading."""
    return f"<section>\n<h2>{escape(heading)}</h2>\n{''.join(content)}\n</section>"
