"""Runs the programmes: the share of the tests, or for as long as you like.

    python3 tests prove                       the share of the tests, with its counts
    python3 tests prove --minutes 30          goes on with new seeds, on every core
    python3 tests prove --only kills --minutes 5
    python3 tests prove --replay 'call-failures log puts os EIO 17'
    python3 tests prove --write               stores the counts that the book prints

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
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from typing import NamedTuple

from tqdm import tqdm

from tests.proof.engines import ENGINES
from tests.proof.mutants import MUTANTS
from tests.proof.programme import Programme, Tally, line, share_of
from tests.proof.programs import (
    call_failures,
    damage,
    fuzz,
    interruptions,
    kills,
    model,
    moving_ground,
    power_cuts,
    threads,
)
from tests.proof.promises import Broken
from tests.proof.share import FIGURES

PROGRAMMES: dict[str, Programme] = {
    programme.NAME: programme
    for programme in (
        *(power_cuts, call_failures, interruptions, moving_ground),
        *(damage, fuzz, kills, model, threads),
    )
}


class Result(NamedTuple):
    """What came of a case."""

    engine: str
    programme: str
    tally: Tally
    broken: Broken | None


def run(case: str) -> Result:
    """Run one case, in whatever process; its words say which programme and engine."""
    # Torn tails are what we ask for.
    logging.getLogger("kvstore").setLevel(logging.ERROR)
    name, engine, *words = case.split()
    tally, failure = Tally(), None
    try:
        tally = PROGRAMMES[name].run(ENGINES[engine], " ".join(words))
    except Broken as broken:
        failure = broken
    return Result(engine, name, tally, failure)


def share_of_the_tests(names: Iterable[str]) -> Iterator[str]:
    for name, subject in itertools.product(names, ENGINES.values()):
        for case in share_of(PROGRAMMES[name], subject):
            yield line(name, subject, case)


def new_cases(names: Iterable[str], seed: int) -> Iterator[str]:
    """Yield cases without end, of one programme and engine after the other."""
    seeds = itertools.count(seed)
    which = [
        (name, subject)
        for name, subject in itertools.product(names, ENGINES.values())
        if share_of(PROGRAMMES[name], subject)
    ]
    while True:
        for name, subject in which:
            yield line(name, subject, PROGRAMMES[name].another(subject, next(seeds)))


def results(cases: Iterator[str], until: float) -> Iterator[Result]:
    """Run cases on every core until there are no more, or the time is up."""
    cores = os.cpu_count() or 1
    with ProcessPoolExecutor(cores) as pool:
        running: set[Future[Result]] = set()
        while True:
            wanted = cores - len(running) if time.monotonic() < until else 0
            new = itertools.islice(cases, wanted)
            running |= {pool.submit(run, case) for case in new}
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)


def with_bar(found: Iterator[Result], seconds: float) -> Iterator[Result]:
    """Show how much of the time is over, and how many cases were run."""
    began = time.monotonic()
    with tqdm(total=round(seconds), unit="s", bar_format=BAR) as bar:
        for number, result in enumerate(found, 1):
            bar.n = min(round(time.monotonic() - began), bar.total)
            bar.set_postfix_str(f"{number:,} cases", refresh=False)
            bar.refresh()
            if result.broken is not None:
                bar.write(str(result.broken))
            yield result


BAR = "{percentage:3.0f}%|{bar}| {n_fmt} of {total_fmt} s{postfix}"
Tallies = dict[str, dict[str, Tally]]  # by engine and programme


def report(found: Iterable[Result]) -> tuple[Tallies, int]:
    """Print what was counted and what broke; return both."""
    tallies: Tallies = {name: defaultdict(Tally) for name in ENGINES}
    failures = []
    for result in found:
        tallies[result.engine][result.programme].add(result.tally)
        if result.broken is not None:
            failures.append(result.broken)
    for engine, of_engine in tallies.items():
        for name, tally in of_engine.items():
            for what, count in tally.counts().items():
                print(f"{engine:8}{name:16}{count:12,}  {what.rstrip('*')}")
    for broken in failures:
        print(f"\nBROKEN  {broken}")
    print("no promise broke" if not failures else f"{len(failures)} promises broke")
    return tallies, len(failures)


def write(tallies: Tallies) -> None:
    """Store the counts that are the same in every run, and the planted bugs, for the book."""
    told = {
        "figures": {
            engine: {name: tally.steady() for name, tally in of_engine.items()}
            for engine, of_engine in tallies.items()
        },
        "bugs": [mutant.told for mutant in MUTANTS],
    }
    FIGURES.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", "utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    if options.replay:
        return min(1, report([run(options.replay)])[1])
    if options.minutes:
        print(f"seed {options.seed}; with it the same cases come in the same order")
        seconds = 60 * options.minutes
        new = new_cases(options.only, options.seed)
        found = with_bar(results(new, time.monotonic() + seconds), seconds)
        return min(1, report(found)[1])
    cases = list(share_of_the_tests(options.only))
    found = results(iter(cases), math.inf)
    tallies, failures = report(tqdm(found, total=len(cases), unit="cases"))
    if options.write and not failures:
        write(tallies)
    return min(1, failures)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python3 tests prove",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--minutes", type=float, help="how long to go on with new cases")
    made.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32))
    made.add_argument(
        "--only", nargs="+", choices=PROGRAMMES, default=[*PROGRAMMES], metavar="NAME"
    )
    made.add_argument("--replay", metavar="CASE", help="run what a failure names")
    made.add_argument("--write", action="store_true", help="store counts for the book")
    return made


if __name__ == "__main__":
    sys.exit(main())
