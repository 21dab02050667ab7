"""Runs the programmes of this folder: the share of the tests, or for as long as you like.

    python tests/crash/prove.py                       the share of the tests, with its counts
    python tests/crash/prove.py --minutes 30          goes on with new seeds, on every core
    python tests/crash/prove.py --only kills --minutes 5
    python tests/crash/prove.py --replay 'calls puts os EIO 17'
    python tests/crash/prove.py --write               stores the counts that the book prints

Ends with status 1 if a promise broke, after printing which one, in which state of the disk,
and the line that shows it again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import math
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path

from tqdm import tqdm

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import bugs  # noqa: E402 - the folder has to be on the path first
import calls  # noqa: E402
import damage  # noqa: E402
import fuzz  # noqa: E402
import kills  # noqa: E402
import model  # noqa: E402
import power_cuts  # noqa: E402
import share  # noqa: E402
import threads  # noqa: E402
from proof import Broken, Programme, Tally  # noqa: E402

PROGRAMMES: dict[str, Programme] = {
    programme.NAME: programme
    for programme in (power_cuts, calls, damage, kills, model, threads, fuzz)
}
Result = tuple[str, Tally, Broken | None]


def run(line: str) -> Result:
    """Run one case, in whatever process: the word before it names its programme."""
    logging.getLogger("kvstore").setLevel(
        logging.ERROR
    )  # torn tails are what we ask for
    name, _, case = line.partition(" ")
    try:
        return name, PROGRAMMES[name].run(case), None
    except Broken as broken:
        return name, Counter(), broken


def share_of_the_tests(names: Iterable[str]) -> Iterator[str]:
    """Yield every case that the tests run."""
    for name in names:
        yield from (f"{name} {case}" for case in PROGRAMMES[name].CASES)


def new_cases(names: Iterable[str], seed: int) -> Iterator[str]:
    """Yield cases without end, of one programme after the other."""
    seeds = itertools.count(seed)
    while True:
        yield from (f"{name} {PROGRAMMES[name].another(next(seeds))}" for name in names)


def results(cases: Iterator[str], until: float) -> Iterator[Result]:
    """Run cases on every core until there are no more, or the time is up."""
    cores = os.cpu_count() or 1
    with ProcessPoolExecutor(cores) as pool:
        running: set[Future[Result]] = set()
        while True:
            wanted = cores - len(running) if time.monotonic() < until else 0
            running |= {
                pool.submit(run, case) for case in itertools.islice(cases, wanted)
            }
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)


def with_bar(found: Iterator[Result], seconds: float) -> Iterator[Result]:
    """Show how much of the time is over, and what was counted so far."""
    began = time.monotonic()
    with tqdm(total=round(seconds), unit="s", bar_format=BAR) as bar:
        counted: Tally = Counter()
        for name, tally, broken in found:
            counted += tally
            bar.n = min(round(time.monotonic() - began), bar.total)
            bar.set_postfix_str(f"{counted.total():,} checks", refresh=False)
            bar.refresh()
            if broken is not None:
                bar.write(str(broken))
            yield name, tally, broken


BAR = "{percentage:3.0f}%|{bar}| {n_fmt} of {total_fmt} s{postfix}"


def add_up(found: Iterable[Result]) -> tuple[dict[str, Tally], list[Broken]]:
    """Return what each programme counted, and every promise that broke."""
    tallies: dict[str, Tally] = {}
    failures = []
    for name, tally, broken in found:
        tallies[name] = tallies.get(name, Counter()) + tally
        if broken is not None:
            failures.append(broken)
    return tallies, failures


def report(found: Iterable[Result]) -> int:
    """Print what was counted and what broke; return the status to end with."""
    tallies, failures = add_up(found)
    for name, tally in tallies.items():
        for what, count in sorted(tally.items()):
            print(f"{name:12}{count:14,}  {what.rstrip('*')}")
    for broken in failures:
        print(f"\nBROKEN  {broken}")
    print("no promise broke" if not failures else f"{len(failures)} promises broke")
    return 1 if failures else 0


def write(tallies: dict[str, Tally]) -> None:
    """Store the counts that are the same in every run, and the planted bugs, for the book."""
    told = {
        "figures": {name: share.steady(tally) for name, tally in tallies.items()},
        "bugs": [[bug.words, bug.module, bug.test] for bug in bugs.BUGS],
    }
    share.FIGURES.write_text(
        json.dumps(told, indent=1, ensure_ascii=False) + "\n", "utf-8"
    )


def main() -> int:
    """Do what the command line asks for."""
    options = arguments()
    if options.replay:
        return report([run(options.replay)])
    if options.minutes:
        print(
            f"seed {options.seed}; the same seed tries the same cases in the same order"
        )
        seconds = 60 * options.minutes
        new = new_cases(options.only, options.seed)
        return report(with_bar(results(new, time.monotonic() + seconds), seconds))
    cases = list(share_of_the_tests(options.only))
    found = tqdm(results(iter(cases), math.inf), total=len(cases), unit="cases")
    if not options.write:
        return report(found)
    tallies, failures = add_up(found)
    write(tallies)
    return report((name, tally, None) for name, tally in tallies.items()) or bool(
        failures
    )


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--minutes", type=float, help="how long to go on with new cases"
    )
    parser.add_argument(
        "--seed", type=int, default=random.SystemRandom().getrandbits(32)
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=PROGRAMMES,
        default=list(PROGRAMMES),
        metavar="NAME",
    )
    parser.add_argument(
        "--replay", metavar="CASE", help="run one case, as a failure names it"
    )
    parser.add_argument(
        "--write", action="store_true", help="store the counts for the book"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
