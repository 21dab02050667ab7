"""What a store says about itself: plain data that prints well.

Counts and bytes, nothing that depends on the clock. They are computed when somebody asks,
so that no put and no get pays for them.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

from kvstore.damage import Damage


@dataclass(frozen=True)
class Stats:
    """How much a store holds, and what that takes. All sizes are bytes."""

    keys: int
    segments: int
    bytes_on_disk: int
    live_bytes: int  # the newest record of every key
    dead_bytes: int  # records that were overwritten, deletes, what deletes deleted

    @property
    def amplification(self) -> float:
        """Return the bytes on disk for each byte of a live record."""
        return self.bytes_on_disk / self.live_bytes if self.live_bytes else float("inf")

    def rows(self) -> list[tuple[str, str]]:
        """Return names and values as a person would read them."""
        return [
            ("keys", f"{self.keys:,}"),
            ("segments", f"{self.segments:,}"),
            ("bytes on disk", f"{self.bytes_on_disk:,}"),
            ("live bytes", f"{self.live_bytes:,}"),
            ("dead bytes", f"{self.dead_bytes:,}"),
            ("amplification", f"{self.amplification:.2f}"),
        ]

    def __str__(self) -> str:
        rows = self.rows()
        width = max(len(value) for _, value in rows)
        return "\n".join(f"{name:<14}{value:>{width}}" for name, value in rows)

    def _repr_html_(self) -> str:
        cells = (
            f"<tr><th>{escape(n)}</th><td>{escape(v)}</td></tr>" for n, v in self.rows()
        )
        return f'<table class="kvstore-stats">{"".join(cells)}</table>'


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, "1 key" or "2 keys"."""
    return f"{number:,} {noun}" + ("s" if number != 1 else "")


def list_damage(damage: tuple[Damage, ...]) -> str:
    """Return the damage, a line each."""
    return "".join(
        f"\n  {each.path}, offset {each.offset}, "
        f"{counted(each.length, 'byte')}: {each.reason}"
        for each in damage
    )


@dataclass(frozen=True)
class VerificationReport:
    """What `Store.verify` found: how much it read, and what of it is damaged."""

    segments: int
    records: int
    bytes_read: int
    damage: tuple[Damage, ...]

    @property
    def ok(self) -> bool:
        """Say whether everything is as it was written."""
        return not self.damage

    def __str__(self) -> str:
        segments = counted(self.segments, "segment")
        read = f"{counted(self.records, 'record')} in {segments} read"
        if self.ok:
            return f"{read}, all of them as they were written"
        places = counted(len(self.damage), "place")
        return f"{read}, damage in {places}:{list_damage(self.damage)}"


@dataclass(frozen=True)
class SalvageReport:
    """What `kvstore.salvage` copied, and what it had to leave out."""

    keys: int
    records_read: int
    manifest_read: bool  # if not, every segment in the directory was taken for valid
    left_out: tuple[Damage, ...]

    def __str__(self) -> str:
        keys, records = counted(self.keys, "key"), counted(self.records_read, "record")
        text = f"{keys} copied, {records} read"
        if not self.manifest_read:
            text += "; the manifest could not be read, so every segment found was used"
        if self.left_out:
            text += f"; left out:{list_damage(self.left_out)}"
        return text


@dataclass(frozen=True)
class CompactionReport:
    """What a compaction did. Bytes are those of the segments that it took up."""

    segments_before: int
    segments_after: int
    bytes_before: int
    bytes_after: int
    records_kept: int
    records_dropped: int
