"""Looking for what can be read past damage."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

import kvstore
import kvstore.damage
from kvstore.damage import Damage, scan_past_damage
from kvstore.record import PUT, encode
from kvstore.segment import SEGMENT_HEADER_BYTES, Entry
from tests.disks import FaultyFileSystem
from tests.helpers import append, flip, new_segment


def test_survey_finds_the_records_past_every_damage(tmp_path: Path) -> None:
    seed = 11
    print("seed", seed)
    chance = random.Random(seed)
    segment = new_segment(
        tmp_path,
        1,
        *((PUT, number, b"%d" % number, chance.randbytes(9)) for number in range(1, 9)),
    )
    whole = list(segment.scan())
    assert list(scan_past_damage(segment)) == whole
    for entry in whole:
        for byte in range(entry.length):
            bit = chance.randrange(8)
            flip(Path(segment.path), entry.offset + byte, bit)
            found = list(scan_past_damage(segment))
            flip(Path(segment.path), entry.offset + byte, bit)
            records = [each for each in found if isinstance(each, Entry)]
            damage = [each for each in found if isinstance(each, Damage)]
            assert records == [each for each in whole if each != entry], (
                f"byte {byte} of record {entry.sequence}"
            )
            assert [(each.offset, each.length) for each in damage] == [
                (entry.offset, entry.length)
            ]
            assert damage[0].path == segment.path


def test_survey_is_not_led_astray_by_a_value_that_holds_records(tmp_path: Path) -> None:
    other = new_segment(tmp_path, 2, (PUT, 7, b"fake", b"fake"))
    raw = Path(other.path).read_bytes()[SEGMENT_HEADER_BYTES:]
    segment = new_segment(tmp_path, 1, (PUT, 1, b"a", raw * 3), (PUT, 2, b"b", b"2"))
    flip(Path(segment.path), SEGMENT_HEADER_BYTES + 12, 7)  # the value's length
    found = list(scan_past_damage(segment))
    assert [each.key for each in found if isinstance(each, Entry)] == [b"b"], (
        "records of another file are no records of this one"
    )


def test_the_search_past_damage_comes_to_an_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = encode(PUT, 5, b"key", b"value", 0)
    filesystem = FaultyFileSystem()
    segment = new_segment(tmp_path, 1, filesystem=filesystem)
    append(segment, (PUT, 1, b"a", fake * 3000), (PUT, 2, b"b", b"2"))
    flip(Path(segment.path), SEGMENT_HEADER_BYTES, 3)
    patient = list(scan_past_damage(segment))
    assert [each.key for each in patient if isinstance(each, Entry)] == [b"b"]
    monkeypatch.setattr(kvstore.damage, "SEARCH_EFFORT", 1)
    filesystem.forget()
    (damage,) = scan_past_damage(segment)
    assert isinstance(damage, Damage)
    assert damage.length == segment.size - SEGMENT_HEADER_BYTES, (
        "the rest is given up whole"
    )
    assert len(filesystem.log("read")) < 1100, "and not every guess was looked at"
