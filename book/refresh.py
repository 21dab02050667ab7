"""Run chapters anew and store their outputs in a normal form.

    python book/refresh.py            every chapter
    python book/refresh.py 03 06      the chapters whose file names begin so

A second run changes nothing. After a change of the package, the difference in a chapter's file is
the difference that its readers will see.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

BOOK = Path(__file__).resolve().parent
TIMEOUT = 120  # seconds that one cell may take

_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_KEPT = ("jupyter", "mystnb", "tags")

# A notebook is the JSON that it is stored as: dictionaries, lists and strings.
Notebook = dict[str, Any]


def chapters(wanted: list[str]) -> list[Path]:
    """The notebooks whose names begin with one of the words in `wanted`, or all of them."""
    every = sorted(BOOK.glob("*.ipynb"))
    for word in wanted:
        if not any(path.name.startswith(word) for path in every):
            names = ", ".join(path.stem for path in every)
            raise SystemExit(f"no chapter begins with {word}; there is {names}")
    return [path for path in every if path.name.startswith(tuple(wanted or [""]))]


def read(path: Path) -> Notebook:
    """Read a notebook, and give an id to each cell that has none."""
    notebook: Notebook = json.loads(path.read_text(encoding="utf-8"))
    used = {cell["id"] for cell in notebook["cells"] if "id" in cell}
    for place, cell in enumerate(notebook["cells"]):
        if "id" not in cell:
            source = _text(cell["source"])
            name = hashlib.sha256(f"{place}\n{source}".encode()).hexdigest()[:8]
            cell["id"] = f"{name}-{place}" if name in used else name
            used.add(cell["id"])
    return notebook


def execute(path: Path) -> Notebook:
    """Run a chapter in its folder, as a reader would, and return it with its new outputs."""
    import nbclient
    import nbformat

    stored = text_of(normalised(read(path)))
    client = nbclient.NotebookClient(
        nbformat.reads(stored, as_version=4),  # type: ignore[no-untyped-call]
        timeout=TIMEOUT,
        kernel_name="python3",
        record_timing=False,
        allow_errors=False,
        resources={"metadata": {"path": str(BOOK)}},
    )
    try:
        client.execute()
    except nbclient.exceptions.CellExecutionError as error:
        raise SystemExit(
            f"{_where(path, client.nb)}: {_ANSI.sub('', str(error))}"
        ) from None
    except nbclient.exceptions.CellTimeoutError:
        where = _where(path, client.nb)
        raise SystemExit(f"{where}: takes more than {TIMEOUT} s") from None
    return normalised(json.loads(json.dumps(client.nb)))


def _where(path: Path, notebook: Notebook) -> str:
    """The cell of a chapter that ran last."""
    ran = [cell for cell in notebook["cells"] if cell.get("execution_count")]
    last = max(ran, key=lambda cell: int(cell["execution_count"]))
    return f"{path.name}, cell {last['id']}"


def normalised(notebook: Notebook) -> Notebook:
    """A notebook in the one form in which chapters are stored."""
    return {
        "cells": [_cell(cell) for cell in notebook["cells"]],
        "metadata": {
            "kernelspec": {
                "display_name": "Python 3",
                "language": "python",
                "name": "python3",
            },
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def text_of(notebook: Notebook) -> str:
    """The text of a notebook's file."""
    return json.dumps(notebook, ensure_ascii=False, indent=1, sort_keys=True) + "\n"


def _cell(cell: dict[str, Any]) -> dict[str, Any]:
    kept = {
        key: value for key, value in cell["metadata"].items() if key in _KEPT and value
    }
    new = {
        "cell_type": cell["cell_type"],
        "id": cell["id"],
        "metadata": kept,
        "source": _lines(_text(cell["source"]).strip("\n")),
    }
    if cell["cell_type"] == "code":
        new["execution_count"] = cell.get("execution_count")
        new["outputs"] = _outputs(cell.get("outputs", []))
    return new


def _outputs(outputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Outputs without what differs between two runs or two machines."""
    new: list[dict[str, Any]] = []
    for output in outputs:
        kind = output["output_type"]
        if kind == "stream":
            text = _ANSI.sub("", _text(output["text"]))
            last = new[-1] if new else {}
            if last.get("output_type") == "stream" and last["name"] == output["name"]:
                last["text"] = _lines("".join(last["text"]) + text)
            else:
                new.append(
                    {"name": output["name"], "output_type": kind, "text": _lines(text)}
                )
        elif kind == "error":
            new.append({**output, "traceback": _traceback(output)})
        else:
            data = {mime: _data(value) for mime, value in output["data"].items()}
            new.append({**output, "data": data, "metadata": output.get("metadata", {})})
            new[-1].pop("transient", None)
    return new


def _traceback(error: dict[str, Any]) -> list[str]:
    """The end of a traceback, `NameOfTheError: what it says` and notes, with no paths above it."""
    opening = error["ename"] + (f": {error['evalue']}" if error["evalue"] else "")
    whole = _ANSI.sub("", "\n".join(error["traceback"]))
    place = whole.rfind(opening)
    return (whole[place:] if place >= 0 else opening).rstrip().split("\n")


def _data(value: Any) -> Any:
    is_text = isinstance(value, str) or (
        isinstance(value, list) and all(isinstance(line, str) for line in value)
    )
    return _lines(_text(value)) if is_text else value


def _text(value: str | list[str]) -> str:
    return value if isinstance(value, str) else "".join(value)


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def main(wanted: list[str]) -> None:
    for path in chapters(wanted):
        before = path.read_text(encoding="utf-8")
        start = time.monotonic()
        after = text_of(execute(path))
        seconds = time.monotonic() - start
        if after != before:
            path.write_text(after, encoding="utf-8")
        what = "the same" if after == before else "stored anew"
        print(f"{path.name}: {what}, {seconds:.1f} s")


if __name__ == "__main__":
    main(sys.argv[1:])
