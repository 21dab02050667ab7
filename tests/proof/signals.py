"""Signals that come at a chosen point of the engine's code, as real ones would.

Python looks for signals at the start of a function, at a jump back, and when a function that is
not written in Python has returned; never, for one, between taking a lock in a ``with`` statement
and the block. An exception out of a trace function comes between any two instructions, and so
finds holes that no signal can reach. Here a trace function lets a small object die as it
returns, and the object's finalizer, a C function, marks a signal as pending. No byte code runs
between that and the instruction that comes next, and Python delivers the signal where it would
deliver a real one, since it is one.

Calls to a simulated disk stand for calls to the system: a signal comes before such a call, or
with its return, and never inside.
"""

from __future__ import annotations

import _thread
import dis
import functools
import signal
import sys
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any, NamedTuple, Self

SIGNAL = signal.SIGUSR1


class Interrupted(KeyboardInterrupt):
    """Somebody pressed Ctrl-C."""


class Tripwire:
    """Marks the signal as pending when it dies, without a single byte code."""

    __del__ = functools.partial(_thread.interrupt_main, SIGNAL)


class Point(NamedTuple):
    """An instruction before which a signal is pending; or a call to the disk, its return."""

    code: CodeType
    offset: int
    call: str = ""

    @property
    def begins(self) -> bool:
        return not self.call and self.offset == min(looks(self.code))

    def __str__(self) -> str:
        call = f" (return of {self.call})" if self.call else ""
        return f"{self.code.co_qualname}+{self.offset}{call}"


LOOKS = ("RESUME", "CALL", "JUMP_BACKWARD", "POP_JUMP_BACKWARD", "INSTRUMENTED")
THE_DISK = frozenset({"kvstore.simdisk", "kvstore.powercut"})


@functools.cache
def looks(code: CodeType) -> frozenset[int]:
    """Return the offsets at which Python may look for signals once the instruction is done."""
    told = dis.get_instructions(code)
    return frozenset(each.offset for each in told if each.opname.startswith(LOOKS))


def module_of(frame: FrameType | None) -> str:
    return "" if frame is None else str(frame.f_globals.get("__name__", ""))


def in_the_disk(frame: FrameType | None) -> bool:
    """Say whether a frame was called by the disk, which stands for the system."""
    while frame is not None and not module_of(frame).startswith("tests."):
        if module_of(frame) in THE_DISK:
            return True
        frame = frame.f_back
    return False


Watch = Callable[[Point], bool]  # whether a signal shall come at this point


def first_time_at(place: Point) -> Watch:
    """Have a signal come at a point, the first time that it is passed."""
    left = [place]

    def watch(point: Point) -> bool:
        return point in left and left.pop() == point

    return watch


def nowhere(_: Point) -> bool:
    """Have no signal come. Nothing is traced then."""
    return False


class Signals:
    """Lets signals come while the engine works, where `watch` says so."""

    def __init__(
        self,
        watch: Watch,
        *,
        on_errors: bool = False,
        action: Callable[[], object] | None = None,
    ) -> None:
        self._watch = watch
        self._on_errors = on_errors  # only where a call to the disk has failed
        self._failing = False
        self._action = action  # what the handler does; None: it raises `Interrupted`
        self.delivered: list[str] = []

    def __enter__(self) -> Self:
        self._before = signal.signal(SIGNAL, self.deliver)
        if self._watch is not nowhere:
            sys.settrace(self._enter)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)
        signal.signal(SIGNAL, signal.SIG_IGN)
        signal.signal(SIGNAL, self._before)

    def deliver(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self.delivered.append(
            "" if frame is None else f"{frame.f_code.co_qualname}+{frame.f_lasti}"
        )
        if self._watch is not nowhere:
            sys.settrace(self._enter)  # what is traced already goes on being traced
        if self._action is None:
            raise Interrupted
        self._action()

    def _enter(self, frame: FrameType, event: str, argument: object) -> Any:  # noqa: ARG002
        """Choose what follows the function that begins here."""
        if in_the_disk(frame.f_back):
            return None
        if module_of(frame) in THE_DISK:
            frame.f_trace_lines = False
            self._failing = False
            return self._at_the_disk
        if module_of(frame).startswith("tests."):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self._at_an_instruction

    def _at_an_instruction(self, frame: FrameType, event: str, argument: object) -> Any:  # noqa: ARG002
        if (
            event == "opcode"
            and not self._on_errors
            and frame.f_lasti in looks(frame.f_code)
            and self._watch(Point(frame.f_code, frame.f_lasti))
        ):
            sys.settrace(None)  # or else the signal would come in here
            tripwire = Tripwire()  # noqa: F841 - it dies when this returns
        return self._at_an_instruction

    def _at_the_disk(self, frame: FrameType, event: str, argument: object) -> Any:  # noqa: ARG002
        if event == "exception":
            self._failing = True
        caller = frame.f_back
        if (
            event == "return"
            and caller is not None
            and self._failing == self._on_errors
        ):
            point = Point(caller.f_code, caller.f_lasti, frame.f_code.co_name)
            if self._watch(point):
                if self._on_errors:
                    sys.settrace(None)
                    tripwire = Tripwire()  # noqa: F841
                    return None
                self.deliver(SIGNAL, caller)
        return self._at_the_disk
