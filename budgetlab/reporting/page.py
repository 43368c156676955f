"""The page: one self-contained report.html that needs no network and prints well."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from urllib.parse import quote

from budgetlab.reporting.conclusion import SanityCheck
from budgetlab.reporting.figures import FigureFiles
from budgetlab.reporting.tables import Sheet

_STYLE = """
:root { --ink: #1d1f21; --soft: #5d6368; --line: #dcdfe2; --paper: #ffffff; --card: #f6f7f8; --good: #1a7f4b;
  --bad: #b3261e; --accent: #0072b2; color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e7e8; --soft: #a0a6ab; --line: #383d42; --paper: #17191b;
  --card: #1f2225; --good: #5fcf94; --bad: #ff8a80; --accent: #6cb8e6; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; max-width: 80rem; padding: 2.5rem 1.5rem 4rem; background: var(--paper); color: var(--ink);
  font: 15px/1.55 system-ui, "Segoe UI", "Helvetica Neue", Arial, sans-serif; }
header p, figcaption, .note, footer, .records { color: var(--soft); }
a { color: var(--accent); text-underline-offset: .15em; }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
.unseen { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
.skip { position: absolute; left: -100rem; padding: .5rem 1rem; background: var(--card); }
.skip:focus { left: 1rem; top: .5rem; }
nav ul { list-style: none; margin: 1rem 0 0; padding: 0; display: flex; flex-wrap: wrap; gap: .3rem 1.1rem;
  font-size: .84rem; }
nav a { display: inline-block; padding: .25rem 0; }
summary { cursor: pointer; font-size: .9rem; padding: .35rem 0; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 .25rem; }
h2 { font-size: 1.1rem; margin: 2.6rem 0 .7rem; padding-bottom: .3rem; border-bottom: 1px solid var(--line); }
p { margin: .4rem 0; max-width: 52rem; }
header p { max-width: none; }
.sentence { font-size: 1.12rem; line-height: 1.5; margin: 1.4rem 0; padding: .9rem 1.1rem; background: var(--card);
  border-left: 4px solid var(--accent); max-width: none; }
.sentence.below { border-color: var(--bad); }
.gates { list-style: none; margin: 0; padding: 0; }
.gates li { padding: .3rem 0 .3rem 5.2rem; text-indent: -5.2rem; }
.mark { display: inline-block; width: 4.4rem; margin-right: .8rem; text-indent: 0; text-align: center; font-size: .8rem;
  font-weight: 600; border: 1px solid currentColor; border-radius: .25rem; }
.passed .mark { color: var(--good); } .failed .mark { color: var(--bad); } .na .mark { color: var(--soft); }
/* What is wider than the screen ends in a shadow, which the table's own end covers; names of rows stay in sight. */
.scroll { overflow-x: auto; background: linear-gradient(to right, transparent, var(--paper) 60%) right / 2.5rem 100%
  no-repeat local, linear-gradient(to left, var(--line), transparent) right / 1.2rem 100% no-repeat scroll; }
tbody th, thead th:first-child { position: sticky; left: 0; background: var(--paper); }
table { border-collapse: collapse; font-size: .84rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-size: .95rem; font-weight: 600; }
caption span { position: sticky; left: 0; display: inline-block; max-width: calc(100vw - 2rem);
  padding: 1.2rem 0 .4rem; }
th, td { padding: .2rem .6rem .2rem 0; text-align: right; white-space: nowrap; font-weight: 400; }
tbody > tr > * { vertical-align: top; }
thead th { vertical-align: bottom; font-weight: 600; line-height: 1.25; border-bottom: 1px solid var(--ink); }
th small { display: block; font-weight: 400; color: var(--soft); }
td.left, th.left { text-align: left; }
td.wrap { white-space: normal; min-width: 14rem; }
tr.block > * { border-top: 1px solid var(--line); }
td.na { color: var(--soft); }
.note, .records { font-size: .84rem; }
figure { margin: 0; break-inside: avoid; min-width: 0; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 30rem), 1fr)); gap: 1.6rem 1.5rem;
  align-items: start; margin-bottom: 1.6rem; }
figure.wide { grid-column: 1 / -1; max-width: 62rem; }
.wide .drawing { overflow-x: auto; } .wide .drawing svg { min-width: 40rem; }
.drawing { background: #ffffff; border: 1px solid var(--line); border-radius: .4rem; padding: .6rem; }
.drawing svg { display: block; width: 100%; height: auto; }
figcaption { font-size: .84rem; margin-top: .4rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1.2rem; margin: .4rem 0; font-size: .9rem; }
dt { color: var(--soft); } dd { margin: 0; }
ul.plain { margin: .4rem 0; padding-left: 1.1rem; }
footer { margin-top: 3rem; font-size: .84rem; border-top: 1px solid var(--line); padding-top: .6rem; }
@media (max-width: 40rem) { body { padding: 1.4rem 1rem 3rem; } dl { grid-template-columns: 1fr; }
  dd { margin-bottom: .4rem; } .gates li { padding-left: 0; text-indent: 0; } .mark { margin-bottom: .2rem; }
  dd, .note, figcaption, li { overflow-wrap: anywhere; } }
@media print { nav { display: none; }
  body { max-width: none; padding: 0; font-size: 10pt; } .scroll { overflow: visible; }
  .figures { grid-template-columns: 1fr 1fr; } h2, caption { break-after: avoid; }
  table { font-size: 7pt; break-inside: avoid; } th, td { padding: .12rem .45rem .12rem 0; }
  .note, figcaption, footer, dl { font-size: 8pt; } h2 { margin-top: 1.4rem; }
  .sentence { font-size: 11pt; border: 1px solid #999999; border-left-width: 4px; } }
"""


_WIDE_POINTS = 360.0
"""A drawing wider than this, which is of two columns of print, takes the page's whole width."""


@dataclass(frozen=True)
class Section:
    """One heading and what stands under it, already HTML."""

    heading: str
    html: str
    records: tuple[str, ...] = ()
    """The files beside the page that its numbers are in."""


def page_html(
    study: str, subtitle: str, sentence: str, *, below: bool, sections: Iterable[Section], footer: str
) -> str:
    """Return the whole page."""
    shown = [section for section in sections if section.html]
    contents = "".join(f'<li><a href="#{_slug(s.heading)}">{escape(s.heading)}</a></li>' for s in shown)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(study)}: compute budget report</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        '<a class="skip" href="#main">Skip to the conclusion</a>\n'
        f"<header><h1>{escape(study)}</h1><p>{escape(subtitle)}</p>\n"
        f'<nav aria-label="Sections"><ul>{contents}</ul></nav></header>\n<main id="main">\n'
        f'<p class="sentence{" below" if below else ""}">{_prose(sentence)}</p>\n'
        + "\n".join(_section(section) for section in shown)
        + f"\n</main>\n<footer>{footer}</footer>\n</body>\n</html>\n"
    )


def _section(section: Section) -> str:
    name = _slug(section.heading)
    links = ", ".join(link_html(path) for path in section.records)
    records = f'\n<p class="records">Numbers: {links}</p>' if links else ""
    heading = f'<h2 id="{name}">{escape(section.heading)}</h2>'
    return f'<section aria-labelledby="{name}">{heading}\n{section.html}{records}</section>'


def _slug(heading: str) -> str:
    return "section-" + "-".join(re.findall(r"[a-z0-9]+", heading.lower()))


def link_html(path: str, text: str | None = None) -> str:
    """Return a link to a file beside the page."""
    return f'<a href="{escape(quote(path))}">{escape(path if text is None else text)}</a>'


def details_html(summary: str, html: str) -> str:
    """Return what is shown when it is asked for."""
    return f"<details><summary>{escape(summary)}</summary>\n{html}</details>"


def sheet_html(sheet: Sheet, *, titled: bool = False, links: Mapping[tuple[int, int], str] | None = None) -> str:
    """Return a sheet as a table, with its notes under it."""
    head = "".join(_head(column.heading, left=column.left) for column in sheet.columns)
    rows = []
    for i, row in enumerate(sheet.rows):
        cells = []
        for j, (cell, column) in enumerate(zip(row, sheet.columns, strict=True)):
            # The first column names the row, and is read out with every cell of it.
            tag, scope = ("th", ' scope="row"') if j == 0 and column.left else ("td", "")
            shown = link_html(links[i, j], cell) if links and (i, j) in links else escape(cell)
            cells.append(f'<{tag}{scope} class="{_classes(cell, column.left)}">{shown}</{tag}>')
        rows.append(f"<tr{' class=block' if i in sheet.rules else ''}>{''.join(cells)}</tr>")
    caption = f"<caption{'' if titled else ' class=unseen'}><span>{escape(sheet.title)}</span></caption>"
    notes = "".join(f'<p class="note">{_prose(note)}.</p>\n' for note in (n.rstrip(".") for n in sheet.notes))
    body = "\n".join(rows)
    # What is wider than the screen is moved sideways, with the arrow keys as well.
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(sheet.title)}"><table>\n{caption}'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>\n" + notes
    )


def gates_html(gates: Sequence[SanityCheck]) -> str:
    """Return the gates as a list."""
    lines = []
    for gate in gates:
        outcome = "passed" if gate.passed else "failed" if gate.judged else "n/a"
        lines.append(
            f'<li class="{outcome.replace("/", "")}"><span class="mark">{outcome}</span>'
            f"<strong>{_prose(gate.name)}.</strong> {_prose(gate.sentence)}</li>"
        )
    return f'<ul class="gates">{"".join(lines)}</ul>' if lines else ""


def figure_html(figures: Sequence[FigureFiles]) -> str:
    """Return figures inline, each with its caption."""
    parts = []
    for figure in figures:
        svg = figure.svg.read_text(encoding="utf-8")
        wide = " class=wide" if _width_points(svg) > _WIDE_POINTS else ""
        drawing = _inline(svg, figure.name, figure.caption)
        files = [link_html(f"figures/{path.name}") for path in (figure.csv, figure.svg, figure.png)]
        caption = f"{_prose(figure.caption)} Numbers: {files[0]}; drawing: {files[1]}, {files[2]}."
        parts.append(f'<figure{wide}><div class="drawing">{drawing}</div><figcaption>{caption}</figcaption></figure>')
    return f'<div class="figures">{"".join(parts)}</div>' if parts else ""


def pairs_html(pairs: Iterable[tuple[str, str]]) -> str:
    """Return names and what they are."""
    lines = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in pairs)
    return f"<dl>{lines}</dl>" if lines else ""


def list_html(lines: Iterable[str]) -> str:
    """Return lines as a list."""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<ul class="plain">{items}</ul>' if items else ""


def _width_points(svg: str) -> float:
    found = re.search(r'viewBox="0 0 ([\d.]+) ', svg)
    return float(found[1]) if found else 0.0


def _inline(svg: str, name: str, label: str) -> str:
    """Return an SVG file as an element of a page: no prologue, no metadata, and names of its own."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    # Several drawings share a page: what one defines must not be found by another.
    body = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', body)
    body = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', body).replace("xlink:href", "href")
    body = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", body)
    open_tag, rest = body.split(">", 1)
    open_tag = re.sub(r'\s(?:xmlns(?::\w+)?|width|height|version)="[^"]*"', "", open_tag)
    return f'{open_tag} role="img" aria-label="{escape(label)}">{rest}'.strip()


def _head(heading: str, *, left: bool) -> str:
    name, _, unit = heading.rpartition("\n") if "\n" in heading else (heading, "", "")
    name = name.replace("\n", " ")
    small = f"<small>{escape(unit)}</small>" if unit else ""
    return f'<th scope="col"{" class=left" if left else ""}>{escape(name)}{small}</th>'


def _classes(cell: str, left: bool) -> str:
    names = ["left"] if left else []
    if cell == "n/a":
        names.append("na")
    if len(cell) > 40:
        names.append("wrap")
    return " ".join(names)


def _prose(text: str) -> str:
    """Return text as a sentence, in which a number stays with its percent sign."""
    first = text.split(" ", 1)[0]
    # A name such as no_kd keeps its own spelling.
    capital = text if "_" in first or not text else text[0].upper() + text[1:]
    return escape(capital).replace(" %", "&nbsp;%")
