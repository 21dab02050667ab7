"""Runs the tests.

    python3 tests quick        all but the proof and the pages, style and types: a minute
    python3 tests              everything: at most eight minutes
    python3 tests unit         one folder of tests; or pitfalls, proof, book, pages ...
    python3 tests prove ...    the proof for as long as you like; see python3 tests prove --help

What follows goes to pytest: `python3 tests quick -k salvage`.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHON = ROOT / ".venv" / "bin" / "python"  # what .ci/environment makes
SLOW = ["tests/proof", "tests/pages"]
LANES = {
    "quick": ["book", "tests", *(f"--ignore={folder}" for folder in SLOW)],
    "all": ["book", "tests"],
}
STYLE_AND_TYPES = [
    ["ruff", "check", "--no-fix", "."],
    ["ruff", "format", "--check", "."],
    ["mypy"],
]


def main(arguments: list[str]) -> int:
    """Run what was asked for, and return 0 if all of it is right."""
    lane = arguments[0] if arguments and arguments[0][0] != "-" else "all"
    rest = arguments[1:] if arguments[:1] == [lane] else arguments
    if lane == "prove":
        return subprocess.call(
            [sys.executable, "-m", "tests.proof.prove", *rest], cwd=ROOT
        )
    if lane not in LANES and not (ROOT / "tests" / lane).is_dir():
        print(__doc__)
        return 2
    paths = LANES.get(lane, [f"tests/{lane}"])
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # each process would compile it all
    commands = STYLE_AND_TYPES if lane == "all" else []
    for command in [*commands, ["pytest", "-ptests", "-n", "2", *paths, *rest]]:
        print("==", *command, flush=True)
        run = [sys.executable, "-m", *command]
        code = subprocess.call(run, cwd=ROOT, stdin=subprocess.DEVNULL)
        if code:
            return code
    return 0


if __name__ == "__main__":
    if importlib.util.find_spec("pytest") is None:
        if not PYTHON.exists():
            sys.exit("run .ci/test once: it makes the environment for the tests")
        os.execv(PYTHON, [str(PYTHON), __file__, *sys.argv[1:]])
    sys.exit(main(sys.argv[1:]))
