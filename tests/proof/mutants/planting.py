"""Bugs, planted one at a time into the package as it is loaded, for the tests to catch.

A test that has never failed proves little. So each of these bugs says what is done to which
lines of which module, and which test has to notice. The package's files stay as they are: a
loader changes the text on its way into memory.

    python3 -m tests.proof.mutants.planting NAME...

runs the tests of the named bugs (or of all of them) and says which were caught. A bug is
caught if its test runs to a check that fails, and not if the test is skipped, is not found,
passes, or stumbles over an error that it does not expect. Ends with status 1 if a bug was
missed. With --json it prints a list for a program to read.
"""

from __future__ import annotations

import argparse
import gc
import importlib.abc
import importlib.machinery
import importlib.util
import io
import json
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from types import ModuleType

import pytest
from hypothesis import Phase, settings

from tests.proof.mutants import MUTANTS, ROOT, Mutant

PATIENCE = 300  # seconds after which a test that a bug has brought to a halt is ended
OPTIONS = (
    "--disable-plugin-autoload",
    "--import-mode=importlib",
    "--override-ini=addopts=",
    "--tb=native",
    "-pno:cacheprovider",
    f"--config-file={ROOT / 'pyproject.toml'}",
)


@dataclass(frozen=True)
class Verdict:
    """What came of a bug: whether its test has noticed, and the words in which it said so."""

    bug: str
    caught: bool
    words: str


class Planter(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the module of a bug, and loads it with the bug in it."""

    def __init__(self, bug: Mutant) -> None:
        self.bug = bug

    def find_spec(
        self,
        name: str,
        _path: Sequence[str] | None,
        _target: ModuleType | None = None,
    ) -> importlib.machinery.ModuleSpec | None:
        if name != f"kvstore.{self.bug.module}":
            return None
        return importlib.util.spec_from_file_location(name, self.bug.file, loader=self)

    def exec_module(self, module: ModuleType) -> None:
        source = self.bug.plant(self.bug.file.read_text("utf-8"))
        exec(compile(source, self.bug.file, "exec"), vars(module))


class Watcher:
    """Notes what the test came to: the words of the first error, and whether it was a check."""

    def __init__(self) -> None:
        self.caught = False
        self.words = ""

    def pytest_exception_interact(
        self,
        call: pytest.CallInfo[object],
        report: pytest.CollectReport | pytest.TestReport,
    ) -> None:
        if self.words or call.excinfo is None:
            return
        self.words = call.excinfo.exconly()
        check = (AssertionError, pytest.fail.Exception)
        self.caught = report.when == "call" and call.excinfo.errisinstance(check)


def attempt(bug: Mutant) -> Verdict:
    """Run the test of a bug against the bug, in this process."""
    if "kvstore" in sys.modules:
        raise RuntimeError("the package was loaded before the bug could be planted")
    try:
        test = bug.test
    except LookupError as error:
        return Verdict(bug.name, False, repr(error))
    sys.meta_path.insert(0, Planter(bug))
    watcher, output = Watcher(), io.StringIO()
    with redirect_stdout(output), redirect_stderr(output):
        status = pytest.main([*OPTIONS, f"{ROOT}/{test}"], plugins=[watcher])
    words = watcher.words or f"pytest ended with {pytest.ExitCode(status).name}"
    return Verdict(bug.name, watcher.caught, words)


def attempt_in_a_fork(bug: Mutant) -> Verdict:
    """Do the same in a process of its own, which has not loaded the package yet."""
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(PATIENCE)
        try:
            os.close(receive)
            with open(send, "wb") as pipe:
                pipe.write(json.dumps(asdict(attempt(bug))).encode())
        finally:
            os._exit(0)
    os.close(send)
    with open(receive, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    if not answer:
        return Verdict(bug.name, False, "the test did not come to an end")
    return Verdict(**json.loads(answer))


def in_a_line(bug: Mutant, verdict: Verdict) -> str:
    """Return what came of a bug: caught or missed, by which test, in which words."""
    outcome = "caught" if verdict.caught else "MISSED"
    return f"{outcome}  {bug.name}  {bug.noticed_by}  {verdict.words.splitlines()[0]}"


def main() -> int:
    """Do what the command line asks for."""
    options = arguments()
    settings.register_profile("bugs", phases=[Phase.generate])  # any failure will do
    settings.load_profile("bugs")
    gc.disable()  # the process of a bug is too short for it
    chosen = [bug for bug in MUTANTS if not options.names or bug.name in options.names]
    verdicts = []
    for bug in chosen:
        verdicts.append(attempt_in_a_fork(bug))
        if not options.json:
            print(in_a_line(bug, verdicts[-1]), flush=True)
    if options.json:
        print(json.dumps([asdict(verdict) for verdict in verdicts]))
    return 0 if all(verdict.caught for verdict in verdicts) else 1


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="a bug; else all")
    parser.add_argument("--json", action="store_true", help="print a list in JSON")
    options = parser.parse_args()
    unknown = set(options.names) - {bug.name for bug in MUTANTS}
    if unknown:
        parser.error(f"there is no bug named {', '.join(sorted(unknown))}")
    return options


if __name__ == "__main__":
    sys.exit(main())
