"""Listings: the package's own source, shown in a chapter.

A chapter never holds a copy of the package's code. A cell asks for a piece of it by name,

    show("record.encode")

and the piece, as it stands in the file at that moment, becomes the output of the cell. The
stored output is compared with a fresh one whenever the tests run, so the book and the package
can't drift apart in silence.

What a name means:

    "record"                  the head of kvstore/record.py: docstring and imports
    "record.encode"           a function, a class or an assignment of that module
    "segment.Segment.append"  a method, or an attribute of a class

With `head=True` a class stands for its head alone: decorators, the class line, docstring and
everything up to the first method. The methods can then be shown one by one.

A piece takes the comments above it along, up to the end of the piece before it. Statements that
have no name of their own (an assertion, a string that documents an assignment) belong to the
piece before them. So every line of a module belongs to some name.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "kvstore"

_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


@dataclass(frozen=True)
class Piece:
    """Consecutive lines of a file that are shown together, `first` to `last`, counted from 1.

    `column` is how far the piece is indented; `parent` is the dotted name that it stands in.
    """

    first: int
    last: int
    column: int
    parent: str


@dataclass(frozen=True)
class Listing:
    """A listing as it is shown: Markdown where that can be rendered, plain text elsewhere."""

    path: str
    objects: tuple[str, ...]
    source: str
    again: bool = False

    def _repr_markdown_(self) -> str:
        title = f"`{self.path}`"
        if self.objects:
            title += " · " + ", ".join(f"`{name}`" for name in self.objects)
        note = " *shown again*" if self.again else ""
        longest = max((len(run) for run in re.findall(r"`+", self.source)), default=0)
        fence = "`" * max(3, longest + 1)
        return f"**{title}**{note}\n\n{fence}python\n{self.source}\n{fence}"

    def __repr__(self) -> str:
        title = self.path
        if self.objects:
            title += " · " + ", ".join(self.objects)
        note = " (shown again)" if self.again else ""
        return f"{title}{note}\n\n{self.source}"


def show(*names: str, head: bool = False, again: bool = False) -> Listing:
    """Show the source of one or more objects of one module, in the order of their names.

    `again` says that a chapter before, or this one, has shown these lines already.
    """
    path, pieces = _resolve(names, head)
    lines = path.read_text(encoding="utf-8").splitlines()
    heads = {name.partition(".")[2] for name in names} if head else set()
    module = names[0].partition(".")[0]
    return Listing(
        path=f"{PACKAGE}/{module}.py",
        objects=tuple(name.partition(".")[2] for name in names if "." in name),
        source=_join(pieces, lines, heads),
        again=again,
    )


def lines_of(*names: str, head: bool = False) -> tuple[Path, set[int]]:
    """The file that a listing shows, and the numbers of the lines that it shows, from 1."""
    path, pieces = _resolve(names, head)
    return path, {n for piece in pieces for n in range(piece.first, piece.last + 1)}


def module_path(module: str) -> Path:
    """The source file of a module of the package. Nothing is imported to find it."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise LookupError(f"the package {PACKAGE} is not installed: pip install -e .")
    folder = Path(next(iter(spec.submodule_search_locations)))
    path = folder / f"{module}.py"
    if not path.is_file():
        modules = sorted(file.stem for file in folder.glob("*.py"))
        raise LookupError(f"{PACKAGE} has no module {module!r}{_near(module, modules)}")
    return path


def _resolve(names: tuple[str, ...], head: bool) -> tuple[Path, list[Piece]]:
    if not names:
        raise ValueError("a listing needs a name")
    modules = {name.partition(".")[0] for name in names}
    if len(modules) > 1:
        raise ValueError(
            f"one listing shows one module, not {', '.join(sorted(modules))}"
        )
    module = modules.pop()
    path = module_path(module)
    table = _Table(path.read_text(encoding="utf-8"))
    pieces: list[Piece] = []
    for name in names:
        wanted = name.partition(".")[2]
        found = table.heads.get(wanted) if head else None
        found = found or table.pieces.get(wanted)
        if not found:
            known = [f"{module}.{known}" for known in table.pieces if known]
            raise LookupError(f"{PACKAGE} has no {name!r}{_near(name, known)}")
        pieces += found
    in_order = sorted(pieces, key=lambda piece: piece.first)
    for earlier, later in itertools.pairwise(in_order):
        if later.first <= earlier.last:
            raise ValueError(
                f"line {later.first} of {path.name} is in this listing twice"
            )
    return path, pieces


def _near(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=4, cutoff=0.5) or known
    return "; there is " + ", ".join(close) if close else ""


def _join(pieces: list[Piece], lines: list[str], heads: set[str]) -> str:
    """Put pieces one under the other, with the blank lines of the source between neighbours.

    A method is moved to the left margin, unless the head of its class is in the listing too.
    Where the source has something between two pieces, a comment with three dots says so.
    """
    shown: list[str] = []
    last = None
    for piece in pieces:
        margin = 0 if piece.parent in heads else piece.column
        if last is not None:
            between = lines[last : piece.first - 1]
            if last < piece.first and not any(line.strip() for line in between):
                shown += [""] * len(between)
            else:
                shown += ["", " " * (piece.column - margin) + "# ...", ""]
        for line in lines[piece.first - 1 : piece.last]:
            indent = len(line) - len(line.lstrip())
            shown.append(line[min(margin, indent) :].rstrip())
        last = piece.last
    return "\n".join(shown)


class _Table:
    """Which lines of a module belong to which name."""

    def __init__(self, source: str) -> None:
        self.lines = source.splitlines()
        self.pieces: dict[str, list[Piece]] = {}
        self.heads: dict[str, list[Piece]] = {}
        whole = Piece(1, len(self.lines), 0, "")
        body = ast.parse(source).body
        self._divide(body, _opens_a_module, 0, whole, "")
        self.pieces[""] = self.heads.get("", [])

    def _divide(
        self,
        body: list[ast.stmt],
        opens: Callable[[ast.stmt], bool],
        head_end: int,
        whole: Piece,
        name: str,
    ) -> None:
        """Divide the lines of a module or class, which are `whole`, among its statements.

        The head takes the statements that can open it, and at least the lines to `head_end`.
        After that each statement with a name begins a piece, which ends where the next begins.
        """
        head = list(itertools.takewhile(opens, body))
        groups = [head]
        for statement in body[len(head) :]:
            if _names(statement):
                groups.append([statement])
            else:
                groups[-1].append(statement)
        column = body[0].col_offset if body else 0
        begin = whole.first
        for place, group in enumerate(groups):
            end = whole.last
            if place < len(groups) - 1:
                end = self._end(group, max(head_end, begin - 1), column)
            if place == 0:
                self._add(self.heads, name, begin, end, whole.column)
            else:
                self._add_statement(group[0], begin, end, column, name)
            begin = end + 1

    def _add_statement(
        self, node: ast.stmt, first: int, last: int, column: int, parent: str
    ) -> None:
        for name in _names(node):
            full = f"{parent}.{name}" if parent else name
            self._add(self.pieces, full, first, last, column)
            if isinstance(node, ast.ClassDef):
                whole = Piece(first, last, column, parent)
                self._divide(node.body, _opens_a_class, self._colon(node), whole, full)

    def _add(
        self,
        table: dict[str, list[Piece]],
        name: str,
        first: int,
        last: int,
        column: int,
    ) -> None:
        """Note that a name has the lines `first` to `last`, without blank ones at the ends."""
        filled = [n for n in range(first, last + 1) if self.lines[n - 1].strip()]
        if filled:
            piece = Piece(filled[0], filled[-1], column, name.rpartition(".")[0])
            table.setdefault(name, []).append(piece)

    def _end(self, group: list[ast.stmt], end: int, column: int) -> int:
        """The last line of some statements, with the deeper indented comments that follow."""
        for statement in group:
            end = max(end, statement.end_lineno or end)
        if group:
            for number, line in enumerate(self.lines[end:], start=end + 1):
                if line.strip() and _indent(line) <= column:
                    break
                if line.strip():
                    end = number
        return end

    def _colon(self, node: ast.ClassDef) -> int:
        """The last line of `class Name(bases):`, which may take more than one."""
        inside = [*node.bases, *(keyword.value for keyword in node.keywords)]
        line = max([node.lineno, *(each.end_lineno or 0 for each in inside)])
        while ":" not in self.lines[line - 1].split("#")[0]:
            line += 1
        return line


def _opens_a_module(statement: ast.stmt) -> bool:
    """Tell whether a statement can stand in the head of a module."""
    if isinstance(statement, ast.If):
        return "TYPE_CHECKING" in ast.unparse(statement.test)
    docstring = isinstance(statement, ast.Expr) and isinstance(
        statement.value, ast.Constant
    )
    return docstring or isinstance(statement, ast.Import | ast.ImportFrom)


def _opens_a_class(statement: ast.stmt) -> bool:
    """Tell whether a statement can stand in the head of a class."""
    return not isinstance(statement, _DEFINITIONS)


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _names(statement: ast.stmt) -> list[str]:
    """The names by which a statement can be asked for, in the order of the source."""
    if isinstance(statement, _DEFINITIONS):
        return [statement.name]
    if isinstance(statement, ast.If | ast.Try):
        names = [name for inner in _inside(statement) for name in _names(inner)]
        return list(dict.fromkeys(names))
    targets: list[ast.AST] = []
    if isinstance(statement, ast.Assign):
        targets = [node for target in statement.targets for node in ast.walk(target)]
    elif isinstance(statement, ast.AnnAssign | ast.AugAssign):
        targets = [statement.target]
    elif hasattr(statement, "name"):  # type Name = ..., from Python 3.12
        targets = [statement.name]
    return [node.id for node in targets if isinstance(node, ast.Name)]


def _inside(statement: ast.If | ast.Try) -> list[ast.stmt]:
    inner = [*statement.body, *statement.orelse]
    if isinstance(statement, ast.Try):
        inner += [each for handler in statement.handlers for each in handler.body]
        inner += statement.finalbody
    return inner
