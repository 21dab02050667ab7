"""Bytes of any kind, given to everything that parses bytes.

A file may hold anything: half of what was written, another file's bytes, what somebody put
there on purpose. A parser reads it as exactly what it says, or refuses it with an error that
has a name. It raises nothing else, and asks for no bytes that are not there.

An input begins as real bytes of one of the engine's formats, or as a real store. It is then
changed: flipped bits, ranges cut, repeated or moved, numbers set to their limits. What has
to come of it the formats say, which the engine's file in `engines` tells anew.

Nothing here is timed. What bounds the time is how many bytes are read, and the simulated
disk counts them.

The corpus holds single inputs, run by every test. Most were made by hand, one for each thing
that a parser has to notice. Those whose names begin with "found" come from a coverage-guided
run of some minutes over the parsers.

    record 1                     every input of a kind; "record 1 371" is one of them
    corpus record/kind-is-zero   a file of the corpus
    directory 1                  whole stores
    limits closed                a store with each number in its files at each limit
    search 1                     searches in large files that were made to keep them busy
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from kvstore.errors import (
    CorruptionError,
    ForeignDirectoryError,
    KVStoreError,
    LimitError,
    NewerFormatError,
    StoreNotFoundError,
)
from kvstore.powercut import Image
from kvstore.simdisk import SimulatedDisk
from tests.proof.history import Contents
from tests.proof.hostile import ALL_LEFT, AS_IT_SAYS, Outcome, Random, Trial, changed
from tests.proof.programme import Tally, fingerprint, fingerprint_of, line
from tests.proof.promises import Breach, Promise
from tests.proof.samples import left_as
from tests.proof.subject import PATH, Codec, Engine, Rescue, Subject, Tail
from tests.proof.surviving import Opened, read

NAME = "fuzz"
NEEDS = frozenset({Promise.NO_GUESSES, Promise.NEWEST})
CORPUS = Path(__file__).parents[1] / "corpus"

NEWEST = Breach(Promise.NEWEST, "a store does not hold the newest record of every key")
ALL_OF_A_BATCH = Breach(Promise.WHOLE, "salvage takes a part of a batch")
STAYS = Breach(Promise.SAFE, "what a store took and closed with is not there again")

STATES = "closed", "unsynced", "torn", "merged"  # of stores that are changed
AT_LIMITS = "closed", "unsynced"
DIRECTORIES, SEARCHES = 1000, 3  # in a case; searches are of each kind

TARGET = "saved"
NO_STORE = Opened(None, None)
NAMED = CorruptionError, ForeignDirectoryError, LimitError, NewerFormatError


# Changes to a store


def files(image: Image) -> list[str]:
    """Return the paths of what is no directory, and not empty."""
    return [path for path in image if image[path]]


def change_a_file(chance: Random, subject: Subject, image: Image, trial: Trial) -> None:
    """Change one file of a store, as what it is."""
    path = chance.choice(files(image))
    codec = subject.codecs.codec_of(path)
    trial.steps.append(f"of {path}")
    if codec is None:
        image[path] = changed(chance, image[path], [(0, 1)], trial)
    else:
        image[path] = codec.changed(chance, image[path], trial)


def swap_files(chance: Random, _: Subject, image: Image, trial: Trial) -> None:
    one, other = chance.choices(files(image), k=2)
    image[one], image[other] = image[other], image[one]
    trial.steps.append(f"{one} and {other} swapped")


def lose_a_file(chance: Random, _: Subject, image: Image, trial: Trial) -> None:
    path = chance.choice(files(image))
    del image[path]
    trial.steps.append(f"{path} gone")


def add_a_file(chance: Random, subject: Subject, image: Image, trial: Trial) -> None:
    """Add a file that the store does not know, under a name that it might know."""
    path = chance.choice(subject.codecs.NAMES)
    image[path] = image[chance.choice(sorted(image))]
    trial.steps.append(f"{path} of {len(image[path])} bytes added")


def reorder(chance: Random, subject: Subject, image: Image, trial: Trial) -> None:
    """Put what is in a file in another order, which decides nothing."""
    subject.codecs.in_another_order(chance, image)
    trial.steps.append("what is in a file in another order")


CHANGES = (*[change_a_file] * 7, swap_files, lose_a_file, add_a_file, reorder)


def change_store(chance: Random, subject: Subject, image: Image, trial: Trial) -> Image:
    result = image.copy()
    for _ in range(chance.choice((0, 1, 1, 1, 2))):
        chance.choice(CHANGES)(chance, subject, result, trial)
    return result


def at_limits(subject: Subject, image: Image) -> Iterator[tuple[Image, str]]:
    """Yield a store with each of its numbers at each limit, and say which and where."""
    for path in sorted(image):
        if codec := subject.codecs.codec_of(path):
            for raw, step in codec.at_limits(image[path]):
                yield image | {path: raw}, f"of {path} {step}"


# What has to come of a store


class Directory(NamedTuple):
    """A directory that is opened in every way, its answers held against each other."""

    subject: Subject
    image: Image
    trial: Trial

    def check(self) -> Outcome:
        """Read it, write to it, salvage it; return what came of it."""
        found, written = self.read(), self.read_and_use()
        if isinstance(found, KVStoreError) and isinstance(written, KVStoreError):
            agree = type(found) is type(written)
        elif isinstance(written, KVStoreError):  # a store at the end of its numbers
            agree = found != NO_STORE
        else:
            agree = written == (Opened({}, None) if found == NO_STORE else found)
        if not agree:
            what = f"a reader was told {found!r}, and a writer {written!r}"
            raise self.trial.broken(AS_IT_SAYS, what)
        saved = self.salvaged()
        if isinstance(found, KVStoreError):
            return type(found)
        if found.contents is None:
            return StoreNotFoundError
        right = self.subject.codecs.contents_of(self.image, found.torn)
        self.trial.same(found.contents, right, "what the files say", NEWEST)
        self.check_saved(found.contents, found.torn, saved)
        return "whole"

    def read(self) -> Opened | KVStoreError:
        """Return what a reader finds, and make sure that it reads little, changes nothing."""
        codecs, image = self.subject.codecs, self.image
        size = sum(map(len, image.values()))
        disk = self.trial.disk(image, 4 * size + codecs.HEAD_BYTES * len(image))
        answer = self.look(disk)
        self.trial.same(disk.image(), image, "the files that a reader leaves")
        self.trial.check_reads(disk, image, codecs.HEAD_BYTES, codecs.PIECE_BYTES)
        return answer

    def look(self, disk: SimulatedDisk) -> Opened | KVStoreError:
        """Return what a reader finds, or the error that it is told."""
        answer = self.trial.answer(lambda: read(self.subject, disk), *NAMED)
        # A writer tells where it is kept.
        if isinstance(answer, Opened) and answer.torn:
            return answer._replace(torn=answer.torn._replace(kept_as=None))
        return answer

    def read_and_use(self) -> Opened | KVStoreError:
        """Return what a writer finds; make sure that the store works from then on."""
        subject, trial = self.subject, self.trial
        disk = trial.small_disk(self.image)
        db = trial.answer(lambda: subject.open(disk, small=80), *NAMED)
        if isinstance(db, KVStoreError):
            return db
        with trial.no_error():
            held, damage, torn = dict(db), subject.damage(db), subject.torn_tail(db)
        trial.same(damage, [], "a store that was opened and mended", ALL_LEFT)
        self.check_kept(disk, torn)
        taken: Contents = {}
        trial.answer(lambda: self.use(db, taken), LimitError)
        right = Opened(held | taken, None)
        trial.same(self.look(disk), right, "a store that took more, and closed", STAYS)
        return Opened(held, torn and torn._replace(kept_as=None))

    def use(self, db: Engine, taken: Contents) -> None:
        """Write to a store that was just opened, and close it; note what it took."""
        with db:
            for number in range(5):  # enough to fill a file, and another
                key = b"%d" % number
                db[key] = taken[key] = b"again"
            self.subject.rearrange(db, 0.9)

    def check_kept(self, disk: SimulatedDisk, torn: Tail | None) -> None:
        if torn is not None:
            tail = self.image[torn.path][torn.offset : torn.offset + torn.length]
            kept = disk.image().get(torn.kept_as or "")
            self.trial.same(kept, tail, "what was kept of what was cut off", ALL_LEFT)

    def salvaged(self) -> tuple[Rescue, Contents] | None:
        """Return the report of salvage and what it copied, none of it made up; or None."""
        subject, trial = self.subject, self.trial
        disk = trial.small_disk(self.image)
        report = trial.answer(
            lambda: subject.salvage(disk, PATH, TARGET),
            *(NewerFormatError, StoreNotFoundError),
        )
        if not self.image.items() <= disk.image().items():
            raise trial.broken(AS_IT_SAYS, "salvage changed the damaged store")
        if isinstance(report, KVStoreError):
            return None
        with trial.no_error(), subject.open(disk, "r", path=TARGET) as db:
            saved = dict(db)
        made_up = saved.items() - subject.codecs.pairs_in(self.image)
        trial.same(made_up, set(), "what salvage copied that is nowhere")
        return report, saved

    def check_saved(
        self, held: Contents, torn: Tail | None, saved: tuple[Rescue, Contents] | None
    ) -> None:
        """Raise unless salvage copies what a store holds, and reports a torn tail."""
        if saved is None:
            raise self.trial.broken(ALL_LEFT, "a reader can open it, and salvage not")
        report, copied = saved
        what = f"that something is left out: {report.words}"
        self.trial.same(bool(report.left_out), bool(torn), what, ALL_LEFT)
        batch = torn is None or self.subject.codecs.is_a_batch_begun(self.image, torn)
        if batch:
            what = f"what salvage copied, saying {report.words}"
            self.trial.same(copied, held, what, ALL_OF_A_BATCH)


# The programme


def cases(subject: Subject) -> list[str]:
    limits = [f"limits {name}" for name in AT_LIMITS]
    return [*(f"{kind} 1" for kind in kinds(subject)), *limits]


def kinds(subject: Subject) -> list[str]:
    return [*subject.codecs.CODECS, "search", "directory"]


def another(subject: Subject, seed: int) -> str:
    which = kinds(subject)
    return f"{which[seed % len(which)]} {seed}"


def run(subject: Subject, case: str) -> Tally:
    """Try all inputs of a case, or one, or a file of the corpus; count the answers."""
    kind, which, *one = case.split()
    tally = Tally()
    if kind == "corpus":
        try_file(subject, which, tally)
    elif kind == "limits":
        try_limits(subject, which, int(one[0]) if one else None, tally)
    else:
        inputs = range(inputs_of(subject, kind))
        for number in map(int, one) if one else inputs:
            words = f"{kind} {which} {number}"
            trial = Trial(line(NAME, subject, words))
            try_one(subject, kind, number, random.Random(words), trial, tally)
    return tally


def inputs_of(subject: Subject, kind: str) -> int:
    if kind == "directory":
        return DIRECTORIES
    if kind == "search":
        return SEARCHES * len(subject.codecs.SEARCHES)
    return subject.codecs.CODECS[kind].inputs


def try_one(
    subject: Subject, kind: str, number: int, chance: Random, trial: Trial, tally: Tally
) -> None:
    if kind == "search":
        searches = subject.codecs.SEARCHES
        name = [*searches][number % len(searches)]
        searches[name](chance, trial)
        tally.count(name)
    elif kind == "directory":
        image = left_as(subject.name, STATES[number % len(STATES)]).image
        image = change_store(chance, subject, image, trial)
        outcome = Directory(subject, image, trial).check()
        check_unchanged(outcome, trial)
        tally.meet(words_for(kind, outcome), fingerprint_of(image))
    else:
        raw, outcome = try_bytes(subject.codecs.CODECS[kind], chance, trial)
        tally.meet(words_for(kind, outcome), fingerprint(raw))


def try_bytes(codec: Codec, chance: Random, trial: Trial) -> tuple[bytes, Outcome]:
    """Make one input for one parser, and try it."""
    raw = codec.make(chance, trial)
    outcome = codec.check(raw, trial)
    check_unchanged(outcome, trial)
    return raw, outcome


def check_unchanged(outcome: Outcome, trial: Trial) -> None:
    """Raise if what was written and not changed is not read as it was written."""
    if not trial.steps:
        trial.same(outcome, "whole", "the answer to what the store itself wrote")


def in_words(outcome: Outcome) -> str:
    if outcome is None:
        return "no answer"
    return outcome if isinstance(outcome, str) else outcome.__name__


def words_for(kind: str, outcome: Outcome) -> str:
    return f"different {kind} inputs: {in_words(outcome)}"


def try_file(subject: Subject, name: str, tally: Tally) -> Outcome:
    """Give one file of the corpus to its parser; return the answer."""
    kind, _, _ = name.partition("/")
    raw = (CORPUS / subject.name / name).read_bytes()
    trial = Trial(line(NAME, subject, "corpus", name), [f"the file {name}"])
    outcome = subject.codecs.CODECS[kind].check(raw, trial)
    tally.meet(words_for(kind, outcome), fingerprint(raw))
    return outcome


def try_limits(subject: Subject, state: str, only: int | None, tally: Tally) -> None:
    """Try one store with each of its numbers at each limit, or with one of them."""
    image = left_as(subject.name, state).image
    for number, (changed_image, step) in enumerate(at_limits(subject, image)):
        if only in (None, number):
            again = line(NAME, subject, "limits", state, number)
            directory = Directory(subject, changed_image, Trial(again, [step]))
            outcome = directory.check()
            tally.meet(words_for("limits", outcome), fingerprint_of(changed_image))
