"""What the tests of the book have in common: the chapters, and the listings in them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import refresh

ROOT = Path(__file__).resolve().parents[2]
BOOK = ROOT / "book"
CHAPTERS = sorted(BOOK.glob("*.ipynb"))

Cell = dict[str, Any]


@dataclass(frozen=True)
class Listing:
    """A call of `show` in a chapter, as it is written there."""

    chapter: str
    cell: str
    names: tuple[str, ...]
    head: bool
    again: bool


def source_of(cell: Cell) -> str:
    return "".join(cell["source"])


def code_cells(path: Path) -> list[Cell]:
    notebook = refresh.read(path)
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def listings_of(path: Path) -> Iterator[Listing]:
    """Every listing of a chapter, in order. The calls are read, not run."""
    for cell in code_cells(path):
        for node in ast.walk(ast.parse(source_of(cell))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "show":
                names = tuple(ast.literal_eval(argument) for argument in node.args)
                options = {
                    keyword.arg: ast.literal_eval(keyword.value)
                    for keyword in node.keywords
                }
                head, again = options.get("head", False), options.get("again", False)
                yield Listing(path.name, cell["id"], names, head, again)
