"""The page: one self-contained report.html that needs no network and prints well, from the template beside it."""

from __future__ import annotations

import re
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from budgetlab.reporting.figures import FigureFiles

if TYPE_CHECKING:
    from markupsafe import Markup

_WIDE_POINTS = 360.0
"""A drawing wider than this, which is of two columns of print, takes the page's whole width."""


def page_html(folder: Path, **content: Any) -> str:
    """Return the whole page of a study's folder, to whose files it leads; `content` is what page.html names."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    page = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.do"],
    )
    page.policies["json.dumps_kwargs"] = {"allow_nan": False}
    page.filters |= {"prose": _prose, "slug": _slug, "name_and_unit": _name_and_unit, "drawing": _drawing}
    page.tests |= {"beside": lambda name: (folder / name).exists(), "wide": _is_wide}
    return page.get_template("page.html").render(**content)


def _prose(text: str) -> Markup:
    """Return text as a sentence, in which a number stays with its percent sign."""
    from markupsafe import Markup

    # A name such as no_kd keeps its own spelling.
    if text and "_" not in text.split(" ", 1)[0]:
        text = text[0].upper() + text[1:]
    return Markup(escape(text).replace(" %", "&nbsp;%"))


def _slug(heading: str) -> str:
    return "section-" + "-".join(re.findall(r"[a-z0-9]+", heading.lower()))


def _name_and_unit(heading: str) -> tuple[str, str]:
    """Split a column's heading: its last line is the unit, where it has several."""
    name, _, unit = heading.rpartition("\n")
    return (name.replace("\n", " "), unit) if name else (unit, "")


def _is_wide(svg: str) -> bool:
    found = re.search(r'viewBox="0 0 ([\d.]+) ', svg)
    return found is not None and float(found[1]) > _WIDE_POINTS


def _drawing(figure: FigureFiles) -> Markup:
    """Return an SVG file as an element of a page: no prologue, no metadata, and names of its own."""
    from markupsafe import Markup

    svg = figure.svg.read_text(encoding="utf-8")
    body = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    # Several drawings share a page: what one defines must not be found by another.
    body = re.sub(r'\bid="([^"]+)"', rf'id="{figure.name}-\1"', body)
    body = re.sub(r'href="#([^"]+)"', rf'href="#{figure.name}-\1"', body).replace("xlink:href", "href")
    body = re.sub(r"url\(#([^)]+)\)", rf"url(#{figure.name}-\1)", body)
    open_tag, rest = body.split(">", 1)
    open_tag = re.sub(r'\s(?:xmlns(?::\w+)?|width|height|version)="[^"]*"', "", open_tag)
    return Markup(f'{open_tag} role="img" aria-label="{escape(figure.caption)}">{rest}'.strip())
