"""The book's pictures: bytes of a record, and records in their segments.

Every picture is drawn from real bytes and real segments, so it can't show what is not there.
It is a small SVG that follows the theme of the page, with the same content in words: for
whoever can't see it, and for a notebook that shows plain text.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from html import escape

from kvstore.index import Index, Layers, pack, unpack
from kvstore.segment import SEGMENT_HEADER_BYTES, Segment

WIDTH = 424
COLOURS = {
    "live": "var(--fig-live, #a9d5cf)",
    "dead": "var(--fig-dead, #e4e0d8)",
    "new": "var(--fig-new, #f4c78d)",
    "damage": "var(--fig-damage, #e8897b)",
    "header": "none",
    "free": "none",
}
EDGE = "var(--fig-edge, #46606a)"
MUTED = "var(--fig-muted, #6a6459)"
TEXT = "var(--fig-text, #2a2925)"
GROUND = "var(--fig-ground, #fdfcf9)"
MONO = "ui-monospace, SFMono-Regular, Menlo, Consolas, monospace"


@dataclass(frozen=True)
class Figure:
    """A picture and the words that say the same."""

    svg: str
    words: str

    def _repr_svg_(self) -> str:
        return self.svg

    def __repr__(self) -> str:
        return self.words


def svg(height: float, label: str, shapes: Iterable[str]) -> str:
    """Return an SVG element of the book's width, with a label for screen readers."""
    return (
        f'<svg class="narrow" width="600" role="img" aria-label="{escape(label)}" '
        f'viewBox="0 0 {WIDTH} {height:g}" '
        f'xmlns="http://www.w3.org/2000/svg" font-family="system-ui, sans-serif">'
        f'<rect width="100%" height="100%" fill="{GROUND}"/>'
        f"{''.join(shapes)}</svg>"
    )


def text(x: float, y: float, words: str, size: float = 12, **style: str) -> str:
    """Return a text element."""
    fill = style.get("fill", TEXT)
    extra = "".join(
        f' {name.replace("_", "-")}="{escape(value)}"'
        for name, value in style.items()
        if name != "fill"
    )
    place = f'x="{x:g}" y="{y:g}" font-size="{size:g}" fill="{fill}"{extra}'
    return f"<text {place}>{escape(words)}</text>"


def box(x: float, y: float, width: float, height: float, state: str) -> str:
    """Return a rectangle in the colour of a state; what is free has a dashed edge."""
    dashes = ' stroke-dasharray="3 3"' if state == "free" else ""
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" '
        f'fill="{COLOURS[state]}" stroke="{EDGE}" stroke-width="1"{dashes}/>'
    )


# --- bytes -------------------------------------------------------------------------------

BYTES_A_ROW = 16
CELL = 25.5
ROW = 46


def draw_bytes(
    raw: bytes,
    fields: Sequence[tuple[str, int]],
    *,
    lit: Collection[str] = (),
    damaged: Collection[int] = (),
) -> Figure:
    """Draw bytes in rows of sixteen, each field named over its first byte.

    `fields` gives names and lengths in bytes, `lit` names the fields to point at, and
    `damaged` the offsets of bytes that are not what they were.
    """
    shapes, words, offset = [], [f"{len(raw)} bytes."], 0
    for number, (name, length) in enumerate(fields):
        state = "new" if name in lit else ("live", "dead")[number % 2]
        part = raw[offset : offset + length]
        words.append(f"{name}: {part.hex(' ') or 'none'}.")
        for place in range(offset, offset + len(part)):
            row, column = divmod(place, BYTES_A_ROW)
            x, y = 8 + column * CELL, 18 + row * ROW
            shapes.append(box(x, y, CELL, 24, "damage" if place in damaged else state))
            shapes.append(
                text(
                    x + CELL / 2,
                    y + 16.5,
                    f"{raw[place]:02x}",
                    13,
                    text_anchor="middle",
                    font_family=MONO,
                )
            )
            if place == offset:
                shapes.append(text(x + 1, y - 4, name, 10.5, fill=MUTED))
        offset += length
    rows = (len(raw) + BYTES_A_ROW - 1) // BYTES_A_ROW
    if damaged:
        words.append(f"Damaged: {', '.join(str(place) for place in sorted(damaged))}.")
    label = " ".join(words)
    return Figure(svg(rows * ROW + 2, label, shapes), label)


def record_fields(key: bytes, value: bytes) -> list[tuple[str, int]]:
    """Return the fields of a record, for `draw_bytes`."""
    return [
        ("kind", 1),
        ("sequence number", 8),
        ("key len.", 2),
        ("value length", 4),
        ("key", len(key)),
        ("value", len(value)),
        ("checksum", 4),
    ]


# --- segments ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """A stretch of a file: what stands in it, how many bytes, and its state."""

    words: str
    length: int
    state: str  # a key of COLOURS


@dataclass(frozen=True)
class Strip:
    """One file: its name, and its blocks from the first byte to the last."""

    name: str
    blocks: tuple[Block, ...] = field(default_factory=tuple)
    mark: int | None = None  # how many bytes of it are known to be on the disk


STRIP = 58
LEAST = 12


def draw_strips(strips: Sequence[Strip]) -> Figure:
    """Draw files as strips of blocks, all to the same scale, with the words that fit."""
    longest = max(sum(block.length for block in strip.blocks) for strip in strips)
    scale = (WIDTH - 16) / max(longest, 1)
    shapes, words = [], []
    for number, strip in enumerate(strips):
        top = 20 + number * STRIP
        total = sum(block.length for block in strip.blocks)
        shapes.append(text(8, top - 5, f"{strip.name} · {total} bytes", 12, fill=MUTED))
        offset = 0
        for block in strip.blocks:
            x, width = 8 + offset * scale, block.length * scale
            shapes.append(box(x, top, width, 26, block.state))
            if len(block.words) * 7.2 < width - 4:
                middle = x + width / 2
                shapes.append(
                    text(middle, top + 17.5, block.words, 12, text_anchor="middle")
                )
            offset += block.length
        if strip.mark is not None:
            x = 8 + strip.mark * scale
            shapes.append(
                f'<path d="M{x:g} {top - 3:g}v34" stroke="{EDGE}" stroke-width="2.5" fill="none"/>'
            )
        words.append(f"{strip.name}: {list_blocks(strip)}.")
    label = " ".join(words)
    return Figure(svg(len(strips) * STRIP - 4, label, shapes), label)


def list_blocks(strip: Strip) -> str:
    """Say what a strip holds."""
    parts = [
        f"{block.words or 'bytes'} ({block.length} bytes, {block.state})"
        for block in strip.blocks
    ]
    if strip.mark is not None:
        parts.append(f"the mark at {strip.mark}")
    return ", ".join(parts)


def segment_strip(
    segment: Segment, index: Index | None = None, mark: int | None = None
) -> Strip:
    """Return the strip of a segment. With an index, dead records are told from live ones."""
    blocks = [Block("header", SEGMENT_HEADER_BYTES, "header")]
    for entry in segment.scan():
        place = pack(segment.number, entry.offset, entry.length)
        live = not entry.deletes if index is None else index.get(entry.key) == place
        name = entry.key.decode("utf-8", "backslashreplace")
        words = f"− {name}" if entry.deletes else name
        blocks.append(Block(words, entry.length, "live" if live else "dead"))
    return Strip(segment.path.rpartition("/")[2], tuple(blocks), mark)


def draw_segments(segments: Iterable[Segment], index: Index | None = None) -> Figure:
    """Draw segments: live records, dead ones, and deletes with a minus before the key."""
    return draw_strips([segment_strip(segment, index) for segment in segments])


# --- directories -------------------------------------------------------------------------


def draw_directories(steps: Sequence[tuple[str, Sequence[tuple[str, str]]]]) -> Figure:
    """Draw one directory at several moments: the words, then a column for each file.

    A file is its label and its state; one that is not there at that moment is "free".
    """
    columns = list(zip(*(files for _, files in steps), strict=True))
    widths = [max(34, *(8 + 7.4 * len(label) for label, _ in each)) for each in columns]
    shapes, words = [], []
    for number, (caption, files) in enumerate(steps):
        top, x = 20 + number * STRIP, 8.0
        shapes.append(text(8, top - 6, caption, 12, fill=MUTED))
        for (label, state), width in zip(files, widths, strict=True):
            shapes.append(box(x, top, width, 26, state))
            middle = x + width / 2
            if state != "free":
                shapes.append(text(middle, top + 17.5, label, 12, text_anchor="middle"))
            x += width + 6
        there = [f"{label} ({state})" for label, state in files if state != "free"]
        words.append(f"{caption}: {', '.join(there)}.")
    label = " ".join(words)
    return Figure(svg(len(steps) * STRIP - 4, label, shapes), label)


def draw_places(
    places: Sequence[str], moments: Sequence[tuple[str, Sequence[tuple[str, str]]]]
) -> Figure:
    """Draw what is in each of some places, a row for each moment.

    A place holds words and has a state; one that holds nothing is "free".
    """
    width = (WIDTH - 16) / len(places)
    shapes, words = [], []
    for number, place in enumerate(places):
        middle = 8 + (number + 0.5) * width
        shapes.append(text(middle, 15, place, 13, text_anchor="middle"))
    for number, (caption, held) in enumerate(moments):
        top = 44 + number * STRIP
        shapes.append(text(8, top - 6, caption, 13, fill=MUTED))
        for column, (what, state) in enumerate(held):
            x = 8 + column * width
            shapes.append(box(x, top, width - 4, 28, state))
            middle = x + (width - 4) / 2
            shapes.append(text(middle, top + 18.5, what, 13, text_anchor="middle"))
        told = (
            f"{p} {what or 'nothing'}"
            for p, (what, _) in zip(places, held, strict=True)
        )
        words.append(f"{caption}: {', '.join(told)}.")
    label = " ".join(words)
    return Figure(svg(len(moments) * STRIP + 20, label, shapes), label)


def draw_index(index: Index, segments: Sequence[Segment]) -> Figure:
    """Draw an index over its segments, with a line from each key to its record."""
    strips, above = draw_segments(segments, index), 66
    scale = (WIDTH - 16) / max(segment.size for segment in segments)
    rows = {segment.number: row for row, segment in enumerate(segments)}
    every = Layers((index.top, *index.frozen)).locations()
    entries = [(unpack(location), key) for key, location in every]
    entries.sort(key=lambda entry: (entry[0].offset, entry[0].segment))
    lines, tops, words = [], [text(8, 14, "index", 12, fill=MUTED)], ["Index:"]
    for number, (place, key) in enumerate(entries):
        x = 8 + (number + 0.5) * (WIDTH - 16) / len(entries)
        end_x = 8 + (place.offset + place.length / 2) * scale
        end_y = above + 20 + rows[place.segment] * STRIP
        name = key.decode("utf-8", "backslashreplace")
        way = f"M{x:g} 44L{end_x:g} {end_y:g}"
        lines.append(
            f'<path d="{way}" stroke="{EDGE}" stroke-width="1.5" fill="none"/>'
        )
        tops.append(box(x - 16, 20, 32, 24, "new"))
        tops.append(text(x, 36.5, name, 12, text_anchor="middle"))
        tops.append(f'<circle cx="{end_x:g}" cy="{end_y:g}" r="3" fill="{EDGE}"/>')
        words.append(
            f"{name} leads to segment {place.segment}, offset {place.offset}, {place.length} bytes."
        )
    inner = strips.svg.partition(">")[2].removesuffix("</svg>")
    page = "var(--pst-color-background, var(--jp-layout-color0, #fff))"
    halo = f'paint-order="stroke" stroke="{page}" stroke-width="5"'
    inner = inner.replace(f'fill="{MUTED}"', f'fill="{MUTED}" {halo}')
    label = " ".join([*words, strips.words])
    shapes = [*lines, f'<g transform="translate(0 {above})">{inner}</g>', *tops]
    return Figure(svg(above + len(segments) * STRIP - 4, label, shapes), label)


# --- states of a disk --------------------------------------------------------------------

LABEL = 168
OUTCOME = 15.5
SIGNS = {"new": "•", "old": "", "broken": "×"}
SHADES = {"new": "live", "old": "dead", "broken": "damage"}


def draw_matrix(rows: Sequence[tuple[str, Sequence[str]]]) -> Figure:
    """Draw, for each call, the states that a power cut after it may leave, a cell each.

    A cell is "new" or "old", where the store holds what it holds after the work or before
    it, or "broken": something that it must not hold at that moment.
    """
    shapes, words = [], []
    for number, (call, cells) in enumerate(rows):
        top = 4 + number * 21
        shapes.append(text(8, top + 12.5, call, 11.5, fill=MUTED))
        for place, cell in enumerate(cells):
            x = LABEL + place * OUTCOME
            shapes.append(box(x, top, OUTCOME, 17, SHADES[cell]))
            sign = {"text_anchor": "middle"}
            shapes.append(text(x + OUTCOME / 2, top + 13, SIGNS[cell], 13, **sign))
        counts = [(cells.count(state), state) for state in SIGNS if state in cells]
        told = ", ".join(f"{count} {state}" for count, state in counts)
        words.append(f"{call}: {told}.")
    label = " ".join(words)
    return Figure(svg(len(rows) * 21 + 6, label, shapes), label)


# --- tables ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Table:
    """Rows of text under a head, as a table in the page and as lines in plain text.

    With a `summary` the page folds the table away behind it.
    """

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    summary: str = ""

    def _repr_markdown_(self) -> str:
        lines = [self.head, tuple("---" for _ in self.head), *self.rows]
        table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
        if not self.summary:
            return table
        opening = f"<details>\n<summary>{self.summary}</summary>"
        return f"{opening}\n\n{table}\n\n</details>"

    def __repr__(self) -> str:
        return "\n".join(" · ".join(row) for row in self.rows)


# --- the steps of one call ---------------------------------------------------------------

LANE = 68
Lane = tuple[str, str] | None  # words and a state, or nothing


def draw_steps(
    lanes: Sequence[str], steps: Sequence[tuple[str, Sequence[Lane]]]
) -> Figure:
    """Draw what a call does, step by step, and where the bytes are after each.

    A step is its words and, for each lane, what is there after it: words and a state, or
    None.
    """
    left = WIDTH - 8 - LANE * len(lanes)
    shapes, words = [], []
    for number, lane in enumerate(lanes):
        x = left + (number + 0.5) * LANE
        shapes.append(text(x, 14, lane, 12, fill=MUTED, text_anchor="middle"))
    for number, (step, places) in enumerate(steps, start=1):
        top = 22 + (number - 1) * 31
        shapes.append(text(8, top + 17, f"{number}  {step}", 12))
        there = []
        for column, place in enumerate(places):
            if place is not None:
                label, state = place
                x = left + column * LANE
                shapes.append(box(x + 1.5, top, LANE - 3, 25, state))
                middle = x + LANE / 2
                shapes.append(text(middle, top + 17, label, 11.5, text_anchor="middle"))
                there.append(f"{label} in the {lanes[column]}")
        words.append(f"{number}, {step}: {', '.join(there) or 'nothing'}.")
    label = " ".join(words)
    return Figure(svg(len(steps) * 31 + 24, label, shapes), label)
