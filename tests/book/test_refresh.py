"""The command that runs chapters anew and stores them in the normal form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import refresh


def code(source: str, tags: list[str] | None = None) -> dict[str, Any]:
    metadata: dict[str, Any] = {"execution": {"iopub.execute_input": "now"}}
    metadata |= {"tags": tags} if tags else {}
    return {
        "cell_type": "code",
        "execution_count": None,
        "metadata": metadata,
        "outputs": [],
        "source": source,
    }


def chapter(folder: Path, *cells: dict[str, Any]) -> Path:
    path = folder / "99-sample.ipynb"
    metadata = {"language_info": {"name": "python", "version": "3.11.2"}}
    notebook = {"nbformat": 4, "nbformat_minor": 4, "metadata": metadata}
    path.write_text(json.dumps({**notebook, "cells": list(cells)}), encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a folder of our own in the book's place."""
    monkeypatch.setattr(refresh, "BOOK", tmp_path)
    return tmp_path


def test_a_chapter_is_run_and_a_second_run_changes_nothing(book: Path) -> None:
    path = chapter(
        book,
        code("import sys\nprint('a')\nprint('b', flush=True)\nprint('c')\n6 * 7"),
        code("{}['/home/ada']", tags=["raises-exception"]),
    )
    refresh.main(["99"])
    first = path.read_text(encoding="utf-8")
    cells = json.loads(first)["cells"]
    assert [cell["execution_count"] for cell in cells] == [1, 2]
    stream, result = cells[0]["outputs"]
    assert stream["text"] == ["a\n", "b\n", "c\n"]
    assert result["data"] == {"text/plain": ["42"]}
    (error,) = cells[1]["outputs"]
    assert error["traceback"] == ["KeyError: '/home/ada'"]
    assert [cell["metadata"] for cell in cells] == [{}, {"tags": ["raises-exception"]}]
    assert len({cell["id"] for cell in cells}) == 2
    assert "version" not in first
    refresh.main(["99"])
    assert path.read_text(encoding="utf-8") == first


def test_an_error_stops_the_command_and_changes_nothing(book: Path) -> None:
    path = chapter(book, code("1"), {**code("1 / 0"), "id": "divide"})
    before = path.read_text(encoding="utf-8")
    with pytest.raises(
        SystemExit, match=r"99-sample\.ipynb, cell divide: [\s\S]*by zero"
    ):
        refresh.main([])
    assert path.read_text(encoding="utf-8") == before


def test_an_unknown_chapter_is_named(book: Path) -> None:
    chapter(book)
    with pytest.raises(SystemExit, match="begins with 12; there is 99-sample"):
        refresh.main(["12"])


def test_an_error_keeps_its_notes_and_loses_paths_and_colours() -> None:
    error = {
        "output_type": "error",
        "ename": "DamageError",
        "evalue": "bad",
        "traceback": [
            "\x1b[31mTraceback\x1b[39m /home/ada/x.py",
            "DamageError: bad\na note\n",
        ],
    }
    cell = {**code(""), "id": "a", "outputs": [error]}
    normal = refresh.normalised({"cells": [cell]})
    assert normal["cells"][0]["outputs"][0]["traceback"] == [
        "DamageError: bad",
        "a note",
    ]
