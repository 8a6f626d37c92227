"""A report as a list of blocks, rendered twice: Markdown for the repository, one HTML file for reading."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from analysis.figures import Drawn


@dataclass(frozen=True)
class Heading:
    text: str
    level: int = 2


@dataclass(frozen=True)
class Text:
    """kind: p, lead (the verdict), note or code."""

    text: str
    kind: str = "p"


@dataclass(frozen=True)
class Link:
    """to: relative to the page."""

    text: str
    to: str


Cell = str | tuple[Link, ...]


@dataclass(frozen=True)
class Table:
    """Cells as text, or as links. left: columns of words; the others are numbers."""

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    left: Sequence[int] = (0,)


@dataclass(frozen=True)
class Picture:
    """One figure, or the same one with several x-axes to choose from."""

    options: tuple[Drawn, ...]
    labels: tuple[str, ...] = ("",)


Block = Heading | Text | Table | Picture
STYLE = (Path(__file__).parent / "report.css").read_text()


def markdown(blocks: Sequence[Block], folder: Path) -> str:
    """Pictures are links relative to `folder`."""
    return "\n\n".join(_markdown(block, folder) for block in blocks) + "\n"


def page(blocks: Sequence[Block], title: str, style: str = "") -> str:
    """One file: styles and figures inside, no script, light or dark as the reader's system asks.

    style: rules of this page beside `STYLE`.
    """
    body = "\n".join(_html(block, index) for index, block in enumerate(blocks))
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{escape(title)}</title>\n'
        f"<style>\n{STYLE}{style}{_chooser_rules(blocks)}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def plain_table(table: Table) -> str:
    """For a terminal: columns aligned, two spaces between."""
    cells = [list(table.header), *[[words(cell) for cell in row] for row in table.rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(table.header))]

    def line(row: Sequence[str]) -> str:
        placed = enumerate(zip(row, widths, strict=True))
        return "  ".join(c.ljust(w) if i in table.left else c.rjust(w) for i, (c, w) in placed).rstrip()

    return "\n".join([line(cells[0]), "  ".join("─" * width for width in widths), *[line(row) for row in cells[1:]]])


def words(cell: Cell) -> str:
    return cell if isinstance(cell, str) else ", ".join(link.text for link in cell)


def _markdown(block: Block, folder: Path) -> str:
    if isinstance(block, Heading):
        return f"{'#' * block.level} {block.text}"
    if isinstance(block, Table):
        rule = [":--" if index in block.left else "--:" for index in range(len(block.header))]
        rows = [block.header, rule, *block.rows]
        return "\n".join(f"| {' | '.join(_markdown_cell(cell) for cell in row)} |" for row in rows)
    if isinstance(block, Picture):
        links = [drawn.path.relative_to(folder).as_posix() for drawn in block.options]
        others = [f"[{label}]({link})" for label, link in zip(block.labels, links, strict=True)][1:]
        also = f" Also against {', '.join(others)}." if others else ""
        return f"![{block.options[0].caption}]({links[0]})\n\n*{block.options[0].caption}*{also}"
    return {"lead": f"> **{block.text}**", "code": f"```\n{block.text}\n```", "note": f"*{block.text}*"}.get(
        block.kind, block.text
    )


def _markdown_cell(cell: Cell) -> str:
    if isinstance(cell, str):
        return cell.replace("|", "\\|")
    return ", ".join(f"[{link.text}]({link.to})" for link in cell)


def _html(block: Block, index: int) -> str:
    if isinstance(block, Heading):
        return f"<h{block.level}>{escape(block.text)}</h{block.level}>"
    if isinstance(block, Table):
        return _html_table(block)
    if isinstance(block, Picture):
        return _html_picture(block, index)
    if block.kind == "code":
        return f"<pre>{escape(block.text)}</pre>"
    return f'<p class="{block.kind}">{escape(block.text)}</p>'


def _html_table(table: Table) -> str:
    def row(cells: Sequence[Cell], tag: str) -> str:
        kinds = ['class="w"' if column in table.left else "" for column in range(len(cells))]
        pairs = zip(cells, kinds, strict=True)
        inner = "".join(f"<{f'{tag} {kind}'.strip()}>{_html_cell(cell)}</{tag}>" for cell, kind in pairs)
        return f"<tr>{inner}</tr>"

    rows = "\n".join(row(cells, "td") for cells in table.rows)
    head = f"<thead>{row(table.header, 'th')}</thead>"
    return f'<div class="scroll"><table>\n{head}\n<tbody>\n{rows}\n</tbody>\n</table></div>'


def _html_cell(cell: Cell) -> str:
    if isinstance(cell, str):
        return escape(cell)
    return ", ".join(f'<a href="{escape(link.to)}">{escape(link.text)}</a>' for link in cell)


def _html_picture(picture: Picture, index: int) -> str:
    caption = f"<figcaption>{escape(picture.options[0].caption)}</figcaption>"
    images = [_image(drawn, place) for place, drawn in enumerate(picture.options)]
    if len(images) == 1:
        return f"<figure>{images[0]}{caption}</figure>"
    radios = [
        f'<input type="radio" name="x{index}" id="x{index}-{place}"{" checked" if place == 0 else ""}>'
        f'<label for="x{index}-{place}">{escape(label)}</label>'
        for place, label in enumerate(picture.labels)
    ]
    return f'<figure class="choice"><span>Against</span>{"".join(radios)}<br>{"".join(images)}{caption}</figure>'


def _image(drawn: Drawn, place: int) -> str:
    kind = {".svg": "image/svg+xml", ".png": "image/png"}[drawn.path.suffix]
    data = base64.b64encode(drawn.path.read_bytes()).decode()
    return f'<img class="o{place}" alt="{escape(drawn.caption)}" src="data:{kind};base64,{data}">'


def _chooser_rules(blocks: Sequence[Block]) -> str:
    """Which image a checked radio shows: the images are siblings of the inputs, so CSS alone can choose."""
    most = max((len(block.options) for block in blocks if isinstance(block, Picture)), default=1)
    rules = [f'.choice input[id$="-{k}"]:checked ~ img.o{k} {{ display: block }}' for k in range(most)]
    return "\n".join(rules) + "\n" if most > 1 else ""
