"""What the programme knows of an engine: nothing but what a `Subject` says.

One file in `engines` describes one engine. No programme, no workload and no history knows
how an engine names its files or what is in them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from inspect import isfunction
from types import CodeType, ModuleType
from typing import Literal, NamedTuple, Protocol

import kvstore
from kvstore.filesystem import FileSystem
from kvstore.powercut import Image
from tests.proof.history import Contents
from tests.proof.hostile import Outcome, Random, Trial
from tests.proof.promises import Promise

Engine = kvstore.Store
Flag = Literal["r", "w", "c", "n"]
Sync = float | Literal["os", "always"]
HOUR = 3600.0  # an interval that does not end while a case lasts
MODES: dict[str, Sync] = {"os": "os", "always": "always", "interval": HOUR}
PATH = "store"  # where a store is on a simulated disk


class Place(NamedTuple):
    """Some bytes of a file."""

    path: str
    offset: int
    length: int


class Tail(NamedTuple):
    """The torn tail that a store has cut off when it was opened, and the file that keeps it."""

    path: str
    offset: int
    length: int
    kept_as: str | None


class Layout(NamedTuple):
    """What the files of an undamaged store are for. Paths are those of the image."""

    live: frozenset[str]  # the files that count: changed bytes have to be noticed
    kept: frozenset[str]  # what was kept of torn tails
    records: Sequence[str]  # the live files that hold keys and values
    safe: Mapping[str, int]  # of these: how many bytes are on the disk for sure
    borders: Callable[[str], Sequence[int]]  # of these: where records begin; the end
    tail: str  # the one of these that takes the next change, and may be torn


@dataclass(frozen=True)
class Left:
    """A store as it was left, and what had been written to it."""

    image: Image
    log: bytes  # the tail's file as it was written, whatever the disk kept of it
    contents: dict[int, Contents]  # at each length of the log at which a change ends
    written: set[tuple[bytes, bytes]]
    layout: Layout

    @cached_property
    def ends(self) -> list[int]:
        """Return where changes end in the log, rising."""
        return sorted(self.contents)


class Expected(NamedTuple):
    """What a store has to say about damaged files."""

    errors: Mapping[str, set[int]]  # which places an error may name; none: no error
    foreign: str  # the file whose damage makes this no store at all, or ""
    end: int  # of the log: where the last change ends that is whole
    moved: bool  # whether a whole record stands where another one was
    most: Callable[[str, Flag], int]  # bytes of a file that may be read to open
    fixed: Callable[[str], int]  # of these: before a look at the file's length


class Rescue(NamedTuple):
    """What an engine says when it has saved what can be read of a damaged store."""

    left_out: int  # how many places it could not read
    silent: bool  # whether it takes the store for undamaged
    words: str


class Codec(Protocol):
    """One of an engine's formats, for the fuzzing."""

    @property
    def inputs(self) -> int:
        """Return how many inputs a case tries."""

    def make(self, chance: Random, trial: Trial, /) -> bytes:
        """Return bytes as the engine writes them, mostly changed."""

    def changed(self, chance: Random, raw: bytes, trial: Trial, /) -> bytes:
        """Return such bytes after some changes."""

    def at_limits(self, raw: bytes, /) -> Iterator[tuple[bytes, str]]:
        """Yield such bytes with each number at each limit, and say which and where."""

    def check(self, raw: bytes, trial: Trial, /) -> Outcome:
        """Give any bytes to all that parses them; return the answer, or raise `Broken`."""


class Codecs(Protocol):
    """All that the fuzzing has to know of the files of an engine. A module may be one."""

    CODECS: Mapping[str, Codec]
    SEARCHES: Mapping[str, Callable[[Random, Trial], None]]  # in large files
    NAMES: Sequence[str]  # paths that the engine may take for its own
    HEAD_BYTES: int  # what is read of a file before its length is known, at most
    PIECE_BYTES: int  # what is read at once, at most

    def codec_of(self, path: str) -> Codec | None:
        """Return the format of a file of a store, if it has one."""

    def in_another_order(self, chance: Random, image: Image) -> None:
        """Change an order in a file that decides nothing."""

    def contents_of(self, image: Image, tail: Tail | None) -> Contents:
        """Return what a store holds that opens, by its formats alone."""

    def pairs_in(self, image: Image) -> set[tuple[bytes, bytes]]:
        """Return every key and value that is whole in any file, and bound to it."""

    def is_a_batch_begun(self, image: Image, tail: Tail) -> bool:
        """Say whether there is nothing in a torn tail but a batch without its end."""


class Subject(Protocol):
    """An engine, as the programme sees it."""

    name: str
    share: float  # of each programme's cases in every test run
    promises: frozenset[Promise]
    lock_file: str  # what a writer makes even where it can't open the store, or ""
    codecs: Codecs
    places: Mapping[CodeType, str]  # where writers die, in words
    meets: frozenset[CodeType]  # where threads work on what they share

    def open(
        self,
        disk: FileSystem,
        flag: Flag = "c",
        sync: Sync = "os",
        small: int | None = None,
        path: str = PATH,
    ) -> Engine:
        """Open a store. `small` is about how many bytes fill a file of it."""

    def rearrange(self, db: Engine, share: float = 0.0) -> None:
        """Compact, flush: whatever changes the files, and not what they hold."""

    def torn_tail(self, db: Engine) -> Tail | None:
        """Return the torn tail that was found when this store was opened."""

    def damage(self, db: Engine) -> list[Place]:
        """Read every byte of an open store, and return what is damaged."""

    def salvage(self, disk: FileSystem, source: str, target: str) -> Rescue:
        """Save what can be read of a damaged store, as a new store."""

    def layout(self, image: Image) -> Layout:
        """Say what the files of an undamaged store are for."""

    def unfinished(self, image: Image) -> bool:
        """Say whether nothing tells that there ever was a store."""

    def expected(self, left: Left, damaged: Image) -> Expected:
        """Say what has to come of damage. The formats alone decide, not the engine."""

    def locks(self, db: Engine) -> Iterable[tuple[object, str]]:
        """Yield whatever holds a lock of an open store, and the name of the attribute."""


def codes_of(*holders: object, without: Collection[str] = ()) -> Iterator[CodeType]:
    """Yield the code of functions, and of the functions of classes."""
    for holder in holders:
        if isinstance(holder, type):
            yield from codes_of(*vars(holder).values(), without=without)
        elif isinstance(holder, property):
            yield from codes_of(holder.fget, without=without)
        else:
            wrapped = getattr(holder, "__wrapped__", holder)
            function = getattr(holder, "__func__", wrapped)
            if isfunction(function) and function.__name__ not in without:
                yield from with_those_inside(function.__code__)


def codes_in(*modules: ModuleType, without: Collection[str] = ()) -> Iterator[CodeType]:
    """Yield the code of all functions and classes that some modules define."""
    for module in modules:
        for held in vars(module).values():
            if getattr(held, "__module__", "") == module.__name__:
                codes = codes_of(held, without=without)
                # One that a decorator has made is in the decorator's file.
                yield from (c for c in codes if c.co_filename == module.__file__)


def with_those_inside(code: CodeType) -> Iterator[CodeType]:
    """Yield the code of a function, and of those that it defines."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from with_those_inside(constant)
