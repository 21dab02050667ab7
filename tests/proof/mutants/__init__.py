"""Bugs to plant, one table for each module of the package.

A table is a text file named after its module. A bug takes three lines, and an empty one ends
it: its name and what is wrong in words; the function, a piece of its text that occurs once in
it, and what is put there instead; and who has to notice, a case of a programme or a test's name.

    # sync-does-nothing: `sync` returns without an fsync
    Log.sync: active.sync() ==> pass
    power-cuts log puts os 512

``*`` in the function's place means the whole module, and a backslash with an n a new line.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
PACKAGE = ROOT / "kvstore"


class Mutant(NamedTuple):
    """A bug: what is wrong in words, how to plant it, and who has to notice."""

    name: str
    words: str
    module: str
    where: str
    old: str
    new: str
    noticed_by: str

    @property
    def told(self) -> list[str]:
        return [self.words, self.module, self.noticed_by]

    @property
    def file(self) -> Path:
        return PACKAGE / f"{self.module}.py"

    def plant(self, source: str) -> str:
        start, end = extent(source, self.where)
        piece = source[start:end]
        found = piece.count(self.old)
        if found != 1:
            raise LookupError(f"{self.name}: {found} places in {self.where}, not one")
        return source[:start] + piece.replace(self.old, self.new) + source[end:]

    @property
    def test(self) -> str:
        """Return the test that has to notice, as pytest names it."""
        programme, _, case = self.noticed_by.partition(" ")
        if case:
            file = f"tests/proof/test_{programme.replace('-', '_')}.py"
            return f"{file}::test_no_promise_breaks[{case}]"
        name, bracket, parameter = self.noticed_by.partition("[")
        return f"{file_with(name)}::{name}{bracket}{parameter}"


def extent(source: str, where: str) -> tuple[int, int]:
    """Return where a function begins and ends in the source of its module."""
    if where == "*":
        return 0, len(source)
    body: list[ast.stmt] = ast.parse(source).body
    for name in where.split("."):
        named = [each for each in body if getattr(each, "name", None) == name]
        found = named[-1] if named else None  # those before it are overloads
        if not isinstance(found, ast.FunctionDef | ast.ClassDef):
            raise LookupError(f"there is no {where}")
        body, lines = found.body, (found.lineno, found.end_lineno or 0)
    starts = [0, *(match.end() for match in re.finditer("\n", source))]
    return starts[lines[0] - 1], starts[lines[1]]


@cache
def file_with(test: str) -> str:
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    found = [file for file in files if f"def {test}(" in file.read_text("utf-8")]
    if len(found) != 1:
        raise LookupError(f"{len(found)} files have a test named {test}, not one")
    return str(found[0].relative_to(ROOT))


def in_table(table: Path) -> Iterator[Mutant]:
    for entry in table.read_text("utf-8").strip().split("\n\n"):
        title, change, noticed_by = entry.split("\n")
        name, words = title.removeprefix("# ").split(": ", 1)
        where, pieces = change.split(": ", 1)
        old, new = pieces.replace(r"\n", "\n").split(" ==> ")
        yield Mutant(name, words, table.stem, where, old, new, noticed_by)


MUTANTS = [mutant for table in sorted(HERE.glob("*.txt")) for mutant in in_table(table)]
