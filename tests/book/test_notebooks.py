"""The chapters as they are stored."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest
import refresh

from tests.book.notebooks import CHAPTERS, ROOT, code_cells, listings_of, source_of

# What a chapter builds. It imports these modules, and those of the chapters before it.
BUILT_IN = {
    "03": ["record", "errors"],
    "04": ["filesystem", "posix"],
    "05": ["segment"],
    "06": ["index"],
    "07": ["watermark", "recovery"],
    "08": ["compaction", "manifest", "files"],
    "09": ["engine", "store", "log"],
    "10": ["health", "interval"],
    "11": ["directory", "opening"],
    "12": ["damage", "reports", "salvaging"],
    "13": ["powercut", "simdisk"],
}
# What chapters use before it is taken apart.
INSTRUMENTS = {"kvstore.simdisk"}

FORBIDDEN = {
    "a path of one machine": r"(?<![\w.:/])/(?:home|tmp|work|root|Users|private|var/folders)/",
    "an address in memory": r"\b0x[0-9a-f]{9,16}\b",
    "a colour code of a terminal": "\x1b\\[",
}
FORBIDDEN_IN_OUTPUTS = {
    **FORBIDDEN,
    "an address of the network": r"https?://(?!www\.w3\.org/)",
}

every_chapter = pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)


def strings(value: object) -> list[str]:
    """Every string inside a JSON value."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for inner in value.values() for text in strings(inner)]
    if isinstance(value, list):
        if value and all(isinstance(line, str) for line in value):
            return ["".join(value)]
        return [text for inner in value for text in strings(inner)]
    return []


def test_there_are_chapters() -> None:
    assert CHAPTERS


@every_chapter
def test_a_chapter_was_run_from_its_first_cell_to_its_last(path: Path) -> None:
    """nbval passes a chapter with no outputs and no counts in silence; this does not."""
    counts = [cell["execution_count"] for cell in code_cells(path)]
    assert counts == list(range(1, len(counts) + 1)), "run: python book/refresh.py"


@every_chapter
def test_a_chapter_is_stored_in_the_normal_form(path: Path) -> None:
    stored = path.read_text(encoding="utf-8")
    normal = refresh.text_of(refresh.normalised(refresh.read(path)))
    assert stored == normal, "run: python book/refresh.py"


@every_chapter
def test_a_cell_that_raises_is_one_that_is_meant_to(path: Path) -> None:
    for cell in code_cells(path):
        raised = any(output["output_type"] == "error" for output in cell["outputs"])
        meant = "raises-exception" in cell["metadata"].get("tags", [])
        assert raised == meant, f"cell {cell['id']}"


@every_chapter
def test_nothing_stored_belongs_to_one_machine(path: Path) -> None:
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source, outputs = cell["source"], cell.get("outputs", [])
        for part, forbidden in ((source, FORBIDDEN), (outputs, FORBIDDEN_IN_OUTPUTS)):
            for text in strings(part):
                for what, pattern in forbidden.items():
                    found = re.findall(pattern, text)
                    assert not found, f"cell {cell['id']} holds {what}: {found}"


@every_chapter
def test_no_cell_is_left_out_of_the_comparison(path: Path) -> None:
    ignored = re.compile(r"NBVAL_|nbval-(?:ignore|skip)", re.IGNORECASE)
    for cell in code_cells(path):
        tags = " ".join(cell["metadata"].get("tags", []))
        assert not ignored.search(source_of(cell) + tags), f"cell {cell['id']}"


@every_chapter
def test_a_listing_hides_its_cell_and_stands_alone_in_it(path: Path) -> None:
    cells = {cell["id"]: cell for cell in code_cells(path)}
    for listing in listings_of(path):
        cell = cells[listing.cell]
        assert cell["metadata"].get("tags") == ["listing", "remove-input"], listing.cell
        assert cell["metadata"].get("jupyter") == {"source_hidden": True}, listing.cell
        (statement,) = ast.parse(source_of(cell)).body
        assert isinstance(statement, ast.Expr), listing.cell


@every_chapter
def test_what_is_hidden_in_the_page_is_hidden_in_jupyterlab(path: Path) -> None:
    for cell in code_cells(path):
        metadata = cell["metadata"]
        in_page = "remove-input" in metadata.get("tags", [])
        in_lab = metadata.get("jupyter", {}).get("source_hidden", False)
        assert in_page == in_lab, f"cell {cell['id']}"


def imported(path: Path) -> set[str]:
    """The modules of the package that a chapter's cells import."""
    modules = set()
    for cell in code_cells(path):
        for node in ast.walk(ast.parse(source_of(cell))):
            if isinstance(node, ast.Import):
                modules |= {name.name for name in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module == "kvstore":
                modules |= {f"kvstore.{name.name}" for name in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                modules.add(node.module)
    return {name for name in modules if name.partition(".")[0] == "kvstore"}


@every_chapter
def test_a_chapter_imports_what_has_been_built_when_it_is_read(path: Path) -> None:
    if not any(path.name.startswith(number) for number in BUILT_IN):
        assert not path.name[0].isdigit(), f"say in BUILT_IN what {path.name} builds"
        return
    built = {f"kvstore.{n}" for c in BUILT_IN if c < path.name for n in BUILT_IN[c]}
    if path.name >= "09":
        built.add("kvstore")  # with the store the package is there by its name
    early = imported(path) - built - INSTRUMENTS
    assert not early, f"{path.name} imports {sorted(early)} before it is built"


def test_every_module_is_built_in_some_chapter() -> None:
    modules = {path.stem for path in (ROOT / "kvstore").glob("[!_]*.py")}
    listed = [name for names in BUILT_IN.values() for name in names]
    assert len(listed) == len(set(listed))
    assert modules <= set(listed), f"in no chapter: {sorted(modules - set(listed))}"
