"""Recovery: what a store makes of its files, whole, torn or damaged."""

from __future__ import annotations

import errno
import itertools
import logging
import random
from pathlib import Path

import pytest
from faults import FaultyFileSystem
from support import copy_of, files, flip, record_bytes, segments, small_store

import kvstore
import kvstore.recovery
from kvstore.filesystem import DISK
from kvstore.index import unpack
from kvstore.manifest import Manifest, read_manifest
from kvstore.mark import read_mark
from kvstore.record import CONTINUED, DELETE, PUT, encode
from kvstore.recovery import LOST_BEFORE, Damage, Newest, recover, replay, survey
from kvstore.segment import HEADER_BYTES, Entry, Segment
from kvstore.simdisk import Image, SimulatedDisk


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the path of a store that is not there yet."""
    return tmp_path / "store"


def segment_of(
    directory: Path, *records: tuple[int, int, bytes, bytes], number: int = 1
) -> Segment:
    """Return a segment of records: kind, sequence number, key, value."""
    segment = Segment.create(DISK, str(directory), number)
    for kind, sequence, key, value in records:
        segment.append(encode(kind, sequence, key, value, segment.seed))
    return segment


# The newest record of every key


def test_the_newest_record_wins_in_whatever_order_they_are_seen() -> None:
    history = [
        (1, Entry(PUT, 1, b"a", 100, 20)),
        (2, Entry(PUT, 5, b"a", 100, 30)),
        (3, Entry(DELETE, 2, b"b", 100, 20)),
        (1, Entry(PUT, 1, b"b", 200, 20)),
        (2, Entry(DELETE, 4, b"c", 300, 20)),
        (3, Entry(PUT, 6, b"c", 400, 20)),
    ]
    for order in itertools.permutations(history):
        newest = Newest()
        for segment, entry in order:
            newest.add(segment, entry)
        index = {key: unpack(place) for key, place in newest.index().items()}
        assert index == {b"a": (2, 100, 30), b"c": (3, 400, 20)}, (
            f"the sequence number decides, and nothing else: {order}"
        )


# One segment


def test_replay_takes_every_record_of_a_whole_segment(tmp_path: Path) -> None:
    segment = segment_of(
        tmp_path,
        (PUT, 3, b"a", b"1"),
        (DELETE, 5, b"a", b""),
        (PUT, 9, b"b", b""),
    )
    newest = Newest()
    outcome = replay(segment, newest)
    assert (outcome.records, outcome.sequence) == (3, 9)
    assert outcome.end == segment.size
    assert outcome.trouble is None
    assert newest.index().keys() == {b"b"}


@pytest.mark.parametrize("torn", [1, 19, 30])
def test_replay_applies_a_batch_when_it_has_seen_the_last_of_it(
    tmp_path: Path, torn: int
) -> None:
    segment = segment_of(
        tmp_path,
        (PUT, 1, b"a", b"1"),
        (PUT | CONTINUED, 2, b"b", b""),
        (DELETE | CONTINUED, 3, b"a", b""),
        (PUT, 4, b"c", b""),
    )
    segment.cut(segment.size - torn)
    newest = Newest()
    outcome = replay(segment, newest)
    assert newest.index().keys() == {b"a"}, "a batch that is not whole is not there"
    assert outcome.end == HEADER_BYTES + record_bytes(b"a", b"1")
    assert outcome.sequence == 1
    assert outcome.trouble is not None
    assert outcome.trouble.path == segment.path


def test_replay_says_where_a_batch_without_an_end_begins(tmp_path: Path) -> None:
    segment = segment_of(
        tmp_path, (PUT, 1, b"a", b"1"), (PUT | CONTINUED, 2, b"b", b"")
    )
    trouble = replay(segment, Newest()).trouble
    assert trouble is not None
    assert trouble.offset == HEADER_BYTES + record_bytes(b"a", b"1")
    assert "has no end" in trouble.reason


def test_replay_ends_in_front_of_a_record_that_was_lost_before(tmp_path: Path) -> None:
    segment = segment_of(
        tmp_path, (PUT, 3, b"a", b""), (PUT, 4, b"b", b""), (PUT, 9, b"c", b"")
    )
    first, second, third = (entry.offset for entry in segment.scan())
    for old_until, sequence, end in (
        (second, 3, segment.size),  # 4 and 9 came behind 3, as they should
        (third, 4, segment.size),
        (third, 8, segment.size),
        (third, 9, third),
        (second, 4, second),
        (second + 1, 4, segment.size),  # the second begins in front of the place
        (first, 3, first),
        (segment.size, 100, segment.size),  # all of it was there before
    ):
        outcome = replay(segment, Newest(), old_until, sequence)
        assert outcome.end == end, f"above {sequence} behind {old_until}"
        if end == segment.size:
            assert outcome.trouble is None
        else:
            assert outcome.trouble is not None
            assert (outcome.trouble.offset, outcome.trouble.reason) == (
                end,
                LOST_BEFORE,
            )


# Torn tails


def torn_store(path: Path, tail: bytes) -> Path:
    """Make a store that was not closed, with one record and something behind it."""
    db = kvstore.open(path)
    db[b"ada"] = b"1815"
    with segments(path)[0].open("ab") as file:
        file.write(tail)
    return copy_of(path, "torn")


def test_a_torn_tail_is_cut_off_kept_and_reported(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torn, tail = torn_store(path, b"\x01torn"), b"\x01torn"
    last = segments(torn)[0]
    end = HEADER_BYTES + record_bytes(b"ada", b"1815")
    with kvstore.open(torn) as db:
        cut = db.torn_tail
        assert cut is not None, "what is cut off is reported"
        assert (cut.path, cut.offset, cut.length) == (str(last), end, len(tail))
        assert cut.kept_as is not None
        assert Path(cut.kept_as).read_bytes() == tail, "nothing is lost"
        assert Path(cut.kept_as).parent == torn, "it is kept beside the segment"
        assert str(cut) in [each.getMessage() for each in caplog.records]
        assert caplog.records[0].levelno == logging.WARNING
        assert last.stat().st_size == end, "the segment ends behind the last record"
        assert dict(db) == {b"ada": b"1815"}
        db[b"alan"] = b"1912"
    caplog.clear()
    with kvstore.open(torn) as db:
        assert db.torn_tail is None, "a tail is reported once"
        assert dict(db) == {b"ada": b"1815", b"alan": b"1912"}
    assert not caplog.records


def test_a_cut_says_what_happened_and_where_the_bytes_are(path: Path) -> None:
    torn = torn_store(path, b"\x01torn")
    with kvstore.open(torn, "r") as db:
        seen = str(db.torn_tail)
    with kvstore.open(torn) as db:
        done = str(db.torn_tail)
    for text in (seen, done):
        assert "00000001.segment: a torn tail of 5 bytes at offset 58" in text
        assert "too few for a record" in text, "it says why"
    assert seen.endswith("was left out")
    assert f"kept as {segments(torn)[0]}.cut-58" in done


def test_a_reader_leaves_a_torn_tail_where_it_is(path: Path) -> None:
    torn = torn_store(path, b"\x01torn")
    before = files(torn)
    for _ in range(2):
        with kvstore.open(torn, "r") as db:
            assert db.torn_tail is not None
            assert db.torn_tail.kept_as is None
            assert dict(db) == {b"ada": b"1815"}
            assert db.verify().ok, "what was left out is not part of the store"
    assert files(torn) == before


def test_two_tails_at_one_place_are_both_kept(path: Path) -> None:
    torn = torn_store(path, b"\x01first")
    db = kvstore.open(torn)
    with segments(torn)[0].open("ab") as file:
        file.write(b"\x01second")
    again = copy_of(torn, "again")
    kvstore.open(again).close()
    kept = {raw for name, raw in files(again).items() if ".cut-" in name}
    assert kept == {b"\x01first", b"\x01second"}, "no tail is written over another"
    db.close()


def test_a_tail_of_zeros_is_a_torn_tail(path: Path) -> None:
    with kvstore.open(torn_store(path, bytes(5000))) as db:
        assert db.torn_tail is not None
        assert db.torn_tail.length == 5000
        assert dict(db) == {b"ada": b"1815"}


def test_a_bad_record_at_the_mark_is_a_tail_and_one_byte_below_it_is_damage(
    path: Path,
) -> None:
    db = kvstore.open(path)
    db[b"ada"] = b"1815"
    db.sync()
    db[b"alan"] = b"1912"
    with_tail = copy_of(path, "tail")
    with_damage = copy_of(path, "damage")
    end = HEADER_BYTES + record_bytes(b"ada", b"1815")
    flip(segments(with_tail)[0], end, 0)
    flip(segments(with_damage)[0], end - 1, 0)
    with kvstore.open(with_tail) as mended:
        assert dict(mended) == {b"ada": b"1815"}
        assert mended.torn_tail is not None
        assert mended.torn_tail.offset == end
    before = files(with_damage)
    with pytest.raises(kvstore.CorruptionError) as caught:
        kvstore.open(with_damage)
    assert caught.value.path == str(segments(with_damage)[0])
    assert caught.value.offset == HEADER_BYTES
    assert "checksum" in caught.value.reason
    assert files(with_damage) == before, "damage is left as it was found"


# Records that were lost and come to light

SECTOR = 32  # a header has 32 bytes, and so has each record below


def sector(number: int) -> bytes:
    """Return the value of a record that fills one sector, under a key of one byte."""
    return b"%012d" % number


def after_losing_a_record(*changes: tuple[bytes, bytes]) -> SimulatedDisk:
    """Return a machine whose power went as some changes were on their way to the disk.

    None of them arrived in the file. Their bytes did reach the platter, behind its end.
    """
    disk = SimulatedDisk(sector_bytes=SECTOR)
    db = kvstore.open("store", filesystem=disk)
    db[b"1"] = sector(1)
    db.sync()
    with db.batch() as batch:
        for key, value in changes:
            batch[key] = value
    cut = disk.power_cut()
    left = cut.image((0,) * len(cut.doubts))  # the oldest of all that it may be
    return SimulatedDisk(left, sector_bytes=SECTOR, older=disk.image())


def shown_again(images: list[Image], ghost: bytes) -> list[Image]:
    """Return those images in which the lost record's value stands in the segment."""
    found = [each for each in images if ghost in each["store/00000001.segment"]]
    assert found, "the lost record was meant to come to light"
    return found


def read_image(image: Image, flag: kvstore.store.Flag) -> dict[bytes, bytes]:
    """Return what a store on a disk holds."""
    with kvstore.open("store", flag, filesystem=SimulatedDisk(image)) as db:
        return dict(db)


@pytest.mark.parametrize("flag", ["r", "c"])
def test_a_lost_record_does_not_come_back_in_the_place_of_a_new_one(
    flag: kvstore.store.Flag,
) -> None:
    """Power is lost twice, and the disk shows the record that the first loss took.

    Record 2 was on its way when power was lost, and recovery came back with record 1. A
    new one of the same length is appended in its place. Power is lost again, when the
    file's new length is on the disk and its new bytes are not. So the place still shows
    the old record 2, with this file's seed, a checksum that matches, and a number above 1.
    """
    disk = after_losing_a_record((b"2", sector(2)))
    db = kvstore.open("store", filesystem=disk)
    assert dict(db) == {b"1": sector(1)}, "record 2 is lost"
    db[b"3"] = sector(3)
    images = [image for _, image in disk.power_cut().images(10_000)]
    for image in images:
        found = read_image(image, flag)
        assert found in ({b"1": sector(1)}, dict(db)), "what was lost is back"
    for image in shown_again(images, sector(2)):
        again = SimulatedDisk(image, sector_bytes=SECTOR)
        with kvstore.open("store", flag, filesystem=again) as mended:
            assert mended.torn_tail is not None, "it is reported, like any torn tail"
            assert mended.torn_tail.reason == LOST_BEFORE
            assert mended.torn_tail.offset == HEADER_BYTES + SECTOR


def test_a_lost_batch_does_not_come_back_in_the_place_of_a_new_one() -> None:
    disk = after_losing_a_record((b"2", sector(2)), (b"1", sector(0)))
    db = kvstore.open("store", filesystem=disk)
    states = [dict(db)]
    for key in (b"3", b"4"):
        db[key] = sector(int(key))
        states.append(dict(db))
    images = [image for _, image in disk.power_cut().images(10_000)]
    assert shown_again(images, sector(2))
    for image in images:
        assert read_image(image, "r") in states, "a part of the lost batch is back"


def test_a_lost_record_stays_lost_however_often_the_store_is_closed() -> None:
    """A store that was closed keeps the manifest, and what that says still holds."""
    disk = after_losing_a_record((b"2", sector(2)))
    kvstore.open("store", filesystem=disk).close()
    before = read_manifest(disk, "store")
    db = kvstore.open("store", filesystem=disk)
    assert read_manifest(disk, "store") == before
    db[b"3"] = sector(3)
    images = [image for _, image in disk.power_cut().images(10_000)]
    for image in shown_again(images, sector(2)):
        assert read_image(image, "c") == {b"1": sector(1)}
    db.close()
    assert read_image(disk.image(), "c") == {b"1": sector(1), b"3": sector(3)}


def test_the_manifest_notes_after_a_crash_where_the_log_goes_on(path: Path) -> None:
    db = kvstore.open(path)
    begun = read_manifest(DISK, str(path))
    assert (begun.sequence, begun.active.length) == (0, HEADER_BYTES)
    db[b"ada"] = b"1815"
    assert read_manifest(DISK, str(path)) == begun, "a put does not change it"
    crashed = copy_of(path)
    end = segments(crashed)[0].stat().st_size
    with kvstore.open(crashed) as mended:
        noted = read_manifest(DISK, str(crashed))
        assert noted.active.length == end
        mended[b"alan"] = b"1912"
    entries = list(Segment.open(DISK, str(crashed), 1).scan())
    assert [entry.sequence <= noted.sequence for entry in entries] == [True, False]
    db.close()


def older_manifest(directory: Path) -> Manifest:
    """Write a manifest as older versions did, after a compaction, and return it.

    They noted no length of the active segment, and beside it the number of the store's
    last record, which may stand in that segment.
    """
    manifest = read_manifest(DISK, str(directory))
    active = Segment.open(DISK, str(directory), manifest.active.number)
    *_, last = active.scan()
    older = Manifest(
        manifest.next_number,
        last.sequence,
        manifest.sealed,
        manifest.active._replace(length=0),
    )
    (directory / "MANIFEST").write_bytes(older.encode())
    return older


@pytest.mark.parametrize("flag", ["r", "w", "c"])
def test_a_store_whose_manifest_is_of_an_older_version_is_whole(
    path: Path, flag: kvstore.store.Flag
) -> None:
    expected = small_store(path)
    older = older_manifest(path)
    crashed = copy_of(path, "crashed")
    (crashed / "MARK").unlink()
    for directory in (path, crashed):
        with kvstore.open(directory, flag) as db:
            assert dict(db) == expected
            assert db.torn_tail is None, "no record of old is taken for a lost one"
            assert db.verify().ok
    assert read_manifest(DISK, str(path)) == older, "nothing has changed its list"
    noted = read_manifest(DISK, str(crashed)).active.length
    assert noted == (0 if flag == "r" else segments(crashed)[-1].stat().st_size)


def test_a_length_that_is_not_known_says_nothing_about_numbers(tmp_path: Path) -> None:
    segment = segment_of(tmp_path, (PUT, 3, b"a", b""), (PUT, 4, b"b", b""))
    for length, sequence, records in ((0, 9, 2), (HEADER_BYTES, 9, 0)):
        active = segment.describe()._replace(length=length)
        found = recover(DISK, str(tmp_path), [], active, None, sequence, writable=False)
        assert found.records == records


# Segments that are not what the manifest says


def test_damage_in_a_sealed_segment_is_never_cut(tmp_path: Path) -> None:
    small_store(tmp_path / "store")
    for segment in segments(tmp_path / "store")[:-1]:
        for change in ("cut", "grown", "gone"):
            directory = copy_of(tmp_path / "store", f"{segment.stem}-{change}")
            damaged = directory / segment.name
            raw = damaged.read_bytes()
            if change == "gone":
                damaged.unlink()
            else:
                damaged.write_bytes(raw[:-1] if change == "cut" else raw + b"\0")
            before = files(directory)
            for flag in ("r", "c"):
                with pytest.raises(kvstore.CorruptionError) as caught:
                    kvstore.open(directory, flag)
                assert caught.value.path == str(damaged), f"{change}: the file is named"
            assert files(directory) == before, f"{change}: nothing was changed"


def test_a_sealed_segment_cut_between_two_records_is_damage(path: Path) -> None:
    with kvstore.open(path, segment_bytes=100) as db:
        db.update({b"%d" % number: b"x" * 20 for number in range(6)})
    first = segments(path)[0]
    end = HEADER_BYTES + record_bytes(b"0", b"x" * 20)
    first.write_bytes(first.read_bytes()[:end])
    with pytest.raises(kvstore.CorruptionError, match="sealed with") as caught:
        kvstore.open(path)
    assert caught.value.offset == end


def test_a_segment_of_another_store_is_not_taken_for_ours(tmp_path: Path) -> None:
    for name in ("ours", "theirs"):
        with kvstore.open(tmp_path / name, segment_bytes=100) as db:
            db.update({b"%d" % number: b"x" * 20 for number in range(6)})
    for number in (0, -1):
        mixed = copy_of(tmp_path / "ours", f"mixed{number}")
        name = segments(mixed)[number].name
        (mixed / name).write_bytes((tmp_path / "theirs" / name).read_bytes())
        with pytest.raises(kvstore.CorruptionError, match="another store") as caught:
            kvstore.open(mixed)
        assert caught.value.path == str(mixed / name)


def test_two_segments_that_changed_places_are_damage(path: Path) -> None:
    with kvstore.open(path, segment_bytes=100) as db:
        db.update({b"%d" % number: b"x" * 20 for number in range(6)})
    first, second = segments(path)[:2]
    whole = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(whole)
    with pytest.raises(kvstore.CorruptionError, match="this is segment 2, not 1"):
        kvstore.open(path)


def test_a_manifest_that_is_gone_is_damage_and_no_empty_store(path: Path) -> None:
    with kvstore.open(path) as db:
        db[b"ada"] = b"1815"
    (path / "MANIFEST").unlink()
    before = files(path)
    for flag in ("r", "w", "c"):
        with pytest.raises(kvstore.CorruptionError, match="MANIFEST"):
            kvstore.open(path, flag)
    assert files(path) == before


# The mark


def test_the_mark_says_how_far_the_log_is_on_the_disk(path: Path) -> None:
    db = kvstore.open(path)
    db[b"ada"] = b"1815"
    opened = read_mark(DISK, str(path))
    assert opened is not None
    assert opened.synced.length == HEADER_BYTES, "a put alone does not move it"
    db.sync()
    db[b"alan"] = b"1912"
    synced = read_mark(DISK, str(path))
    assert synced is not None
    assert synced.synced.length == HEADER_BYTES + record_bytes(b"ada", b"1815")
    assert not synced.closed
    db.close()
    last = read_mark(DISK, str(path))
    assert last is not None
    assert last.closed
    assert last.synced.length == segments(path)[0].stat().st_size


def test_no_sequence_number_is_given_out_twice(path: Path) -> None:
    db = kvstore.open(path)
    db[b"ada"] = b"1815"
    db.sync()
    end = segments(path)[0].stat().st_size
    db[b"lost"] = b"1912"
    lost = copy_of(path, "lost")
    last = segments(lost)[0]
    last.write_bytes(last.read_bytes()[:end])
    with kvstore.open(lost) as after:
        assert dict(after) == {b"ada": b"1815"}
        after[b"new"] = b"1906"
    given: dict[tuple[int, bytes], Entry] = {}
    for directory in (path, lost):
        segment = Segment.open(DISK, str(directory), 1)
        given |= {(entry.sequence, entry.key): entry for entry in segment.scan()}
    numbers = [sequence for sequence, _ in given]
    assert len(numbers) == len(set(numbers)) == 3, (
        "a record that power took away is not succeeded by one of the same number"
    )


def test_sequence_numbers_go_on_after_a_close(path: Path) -> None:
    for number in range(3):
        with kvstore.open(path) as db:
            db[b"%d" % number] = b""
    segment = Segment.open(DISK, str(path), 1)
    assert [entry.sequence for entry in segment.scan()] == [1, 2, 3]


# A disk that fails


@pytest.mark.parametrize("operation", ["read", "open", "size", "map"])
@pytest.mark.parametrize("flag", ["r", "c"])
def test_a_disk_that_can_not_be_read_changes_nothing(
    tmp_path: Path, operation: str, flag: kvstore.store.Flag
) -> None:
    expected = small_store(tmp_path / "store")
    before = files(tmp_path / "store")
    for which in range(1, 100):
        filesystem = FaultyFileSystem()
        error = OSError(errno.EIO, "Input/output error")
        fault = filesystem.fail(operation, error, first=which)
        try:
            db = kvstore.open(tmp_path / "store", flag, filesystem=filesystem)
        except OSError as caught:
            assert caught is error  # noqa: PT017 - any number of calls may come first
        else:
            filesystem.faults.clear()
            assert fault.seen < which, "the error of the disk did not come through"
            assert dict(db) == expected
            db.close()
            break
        assert files(tmp_path / "store").keys() == before.keys()
        after = files(tmp_path / "store")
        assert {n: raw for n, raw in after.items() if n != "LOCK"} == {
            n: raw for n, raw in before.items() if n != "LOCK"
        }, "an error of the disk is no reason to cut or to change anything"
    assert which > 2


# Looking for what can be read behind damage


def test_survey_finds_every_record_of_a_whole_segment(tmp_path: Path) -> None:
    segment = segment_of(tmp_path, (PUT, 3, b"a", b"1"), (DELETE, 5, b"a", b""))
    assert list(survey(segment)) == list(segment.scan())


def test_survey_finds_the_records_behind_every_damage(tmp_path: Path) -> None:
    seed = 11
    print("seed", seed)
    chance = random.Random(seed)
    segment = segment_of(
        tmp_path,
        *((PUT, number, b"%d" % number, chance.randbytes(9)) for number in range(1, 9)),
    )
    whole = list(segment.scan())
    for entry in whole:
        for byte in range(entry.length):
            bit = chance.randrange(8)
            flip(Path(segment.path), entry.offset + byte, bit)
            found = list(survey(segment))
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
    other = segment_of(tmp_path, (PUT, 7, b"fake", b"fake"), number=2)
    raw = Path(other.path).read_bytes()[HEADER_BYTES:]
    segment = segment_of(tmp_path, (PUT, 1, b"a", raw * 3), (PUT, 2, b"b", b"2"))
    flip(Path(segment.path), HEADER_BYTES + 12, 7)  # the value's length
    found = list(survey(segment))
    assert [each.key for each in found if isinstance(each, Entry)] == [b"b"], (
        "records of another file are no records of this one"
    )


def test_the_search_behind_damage_comes_to_an_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = encode(PUT, 5, b"key", b"value", 0)
    filesystem = FaultyFileSystem()
    segment = Segment.create(filesystem, str(tmp_path), 1)
    segment.append(encode(PUT, 1, b"a", fake * 3000, segment.seed))
    segment.append(encode(PUT, 2, b"b", b"2", segment.seed))
    flip(Path(segment.path), HEADER_BYTES, 3)
    patient = list(survey(segment))
    assert [each.key for each in patient if isinstance(each, Entry)] == [b"b"]
    monkeypatch.setattr(kvstore.recovery, "SEARCH_EFFORT", 1)
    filesystem.calls.clear()
    (damage,) = survey(segment)
    assert isinstance(damage, Damage)
    assert damage.length == segment.size - HEADER_BYTES, "the rest is given up whole"
    assert len(filesystem.log("read")) < 1100, "and not every guess was looked at"
