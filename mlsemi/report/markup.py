"""Pieces of HTML. All text is escaped but `Safe`, which only this package makes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape


class Safe(str):
    """Text that is HTML already."""


def html(text: object) -> str:
    """Text as HTML."""
    return text if isinstance(text, Safe) else escape(str(text))


def formula_html(formula: str, charge: int) -> Safe:
    """A molecular formula with its numbers below and its charge above the line."""
    body = re.sub(r"(\d+)", r"<sub>\1</sub>", escape(formula))
    size = str(abs(charge)) if abs(charge) > 1 else ""
    return Safe(body + (f"<sup>{size}{'+' if charge > 0 else '−'}</sup>" if charge else ""))


def table(
    header: Sequence[object],
    rows: Iterable[Sequence[object]],
    *,
    caption: str,
    text_columns: int = 1,
    row_data: str = "",
) -> Safe:
    """A table; its first column heads the rows.

    Args:
        header: titles of the columns.
        rows: cells.
        caption: what it shows.
        text_columns: so many columns from the left are text, the rest are numbers.
        row_data: name of a data attribute that holds the number of the row, if scripts are to find it.
    """
    kinds = ["" if k < text_columns else ' class="number"' for k in range(len(header))]
    head = "".join(f'<th scope="col"{kind}>{html(cell)}</th>' for cell, kind in zip(header, kinds, strict=True))
    body = []
    for k, row in enumerate(rows):
        first, *rest = (html(cell) for cell in row)
        cells = "".join(f"<td{kind}>{cell}</td>" for cell, kind in zip(rest, kinds[1:], strict=True))
        data = f' data-{row_data}="{k}"' if row_data else ""
        body.append(f'<tr{data}><th scope="row">{first}</th>{cells}</tr>')
    return Safe(
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table>'
        f"<caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def flow(parts: Iterable[str]) -> Safe:
    """Parts that are set in two columns, where the page is wide enough."""
    return Safe(f'<div class="flow">{"".join(parts)}</div>')


def facts(pairs: Iterable[tuple[str, object]]) -> Safe:
    """Names and values, one a line."""
    rows = "".join(f"<div><dt>{html(name)}</dt><dd>{html(value)}</dd></div>" for name, value in pairs)
    return Safe(f'<dl class="facts">{rows}</dl>')


def markdown(text: str) -> Safe:
    """The little Markdown that model cards use: headings, paragraphs, lists, pipe tables, bold, code.

    Raw HTML is escaped, and links stay text: the page is to load nothing.
    """
    parts = []
    for block in re.split(r"\n\s*\n", text.strip()):
        lines = [line.rstrip() for line in block.splitlines()]
        while lines:
            kind = _kind(lines[0])
            # a heading is one line; a paragraph ends where something else begins; the items of a list may go on over
            # further lines
            more = {"heading": (), "table": ("table",), "text": ("text",), "list": ("list", "text")}[kind]
            stop = next((k for k in range(1, len(lines)) if _kind(lines[k]) not in more), len(lines))
            parts.append(_BLOCKS[kind](lines[:stop]))
            lines = lines[stop:]
    return Safe("\n".join(parts))


def _kind(line: str) -> str:
    if line.startswith("#"):
        return "heading"
    return "table" if line.startswith("|") else "list" if re.match(r"[-*] ", line) else "text"


def _inline(text: str) -> str:
    """Bold and code; what is between backticks stays as it is."""
    pieces = []
    for piece in re.split(r"(`[^`]+`)", text):
        if len(piece) > 2 and piece.startswith("`"):
            pieces.append(f"<code>{escape(piece[1:-1])}</code>")
        else:
            pieces.append(re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", escape(piece)))
    return "".join(pieces)


def _heading(lines: list[str]) -> str:
    level = min(len(lines[0]) - len(lines[0].lstrip("#")) + 3, 6)
    return f"<h{level}>{_inline(lines[0].lstrip('# '))}</h{level}>"


def _paragraph(lines: list[str]) -> str:
    return f"<p>{_inline(' '.join(lines))}</p>"


def _list(lines: list[str]) -> str:
    items: list[str] = []
    for line in lines:
        if _kind(line) == "list":
            items.append(line[2:])
        else:
            items[-1] += " " + line.strip()
    return f"<ul>{''.join(f'<li>{_inline(item)}</li>' for item in items)}</ul>"


def _pipe_table(lines: list[str]) -> str:
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines]
    head, body = (rows[0], rows[2:]) if len(rows) > 1 and re.fullmatch(r"[-:\s|]+", lines[1]) else ([], rows)
    out = "".join(f'<th scope="col">{_inline(cell)}</th>' for cell in head) if any(head) else ""
    out = f"<thead><tr>{out}</tr></thead>" if out else ""
    cells = ("".join(f"<td>{_inline(cell)}</td>" for cell in row) for row in body)
    return f'<div class="scroll"><table>{out}<tbody>{"".join(f"<tr>{row}</tr>" for row in cells)}</tbody></table></div>'


_BLOCKS = {"heading": _heading, "text": _paragraph, "list": _list, "table": _pipe_table}
