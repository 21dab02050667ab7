"""What a power cut may leave: every state, counted and named, on disks of a few bytes."""

from __future__ import annotations

import errno
import itertools
import random

import pytest

from kvstore.filesystem import Directory, File
from kvstore.powercut import Image, Inode, PowerCut, draw
from kvstore.simdisk import Operation, SimulatedDisk, no_fault

HERE = {"d/": b""}


def disk_with(image: Image, sector_bytes: int = 4) -> tuple[SimulatedDisk, Directory]:
    disk = SimulatedDisk({**HERE, **image}, sector_bytes=sector_bytes)
    return disk, disk.open_directory("d")


def states(disk: SimulatedDisk) -> list[Image]:
    """Return every state that a power cut may leave, all of them."""
    cut = disk.power_cut()
    assert cut.outcomes <= 10_000, "this test is not as small as it should be"
    return [image for _, image in cut.images(cut.outcomes)]


def files(disk: SimulatedDisk, path: str = "d/f") -> set[bytes | None]:
    """Return what may be left of one file; None where it is not there."""
    return {image.get(path) for image in states(disk)}


def names(disk: SimulatedDisk) -> set[tuple[str, ...]]:
    """Return which paths may be left together."""
    return {tuple(sorted(image)) for image in states(disk)}


def failing(disk: SimulatedDisk, call: str) -> None:
    def fault(operation: Operation) -> None:
        if operation.name == call:
            raise OSError(errno.EIO, "made to fail", operation.path)

    disk.fault = fault


def write(disk: SimulatedDisk, directory: Directory, data: bytes, at: int) -> File:
    file = directory.open("f", writable=True)
    disk.write(file, data, at)
    return file


# Bytes and lengths


def test_a_disk_on_which_all_is_settled_is_left_as_it_is() -> None:
    disk, _ = disk_with({"d/f": b"12345678"})
    assert states(disk) == [{"d/": b"", "d/f": b"12345678"}]
    assert disk.power_cut().outcomes == 1


def test_each_sector_arrives_or_not_whatever_the_others_do() -> None:
    disk, directory = disk_with({"d/f": b"AAAABBBBCCCC"})
    write(disk, directory, b"xxxxyyyyzzzz", 0)
    assert len(files(disk)) == 8
    assert {b"AAAAyyyyCCCC", b"xxxxBBBBzzzz"} < files(disk)


def test_a_sector_may_hold_any_version_since_the_last_fsync() -> None:
    disk, directory = disk_with({"d/f": b"AAAA"})
    for data in (b"one.", b"two.", b"last"):
        write(disk, directory, data, 0)
    assert files(disk) == {b"AAAA", b"one.", b"two.", b"last"}


def test_a_write_that_changes_nothing_leaves_no_doubt() -> None:
    disk, directory = disk_with({"d/f": b"AAAA"})
    write(disk, directory, b"AA", 1)
    assert files(disk) == {b"AAAA"}


def test_the_length_is_one_that_the_file_had_and_none_between() -> None:
    disk, directory = disk_with({"d/f": b"AAAA"})
    write(disk, directory, b"BBBBBBBB", 4)
    lengths = {len(raw) for raw in files(disk) if raw is not None}
    assert lengths == {4, 12}
    write(disk, directory, b"C", 12)
    assert {len(raw) for raw in files(disk) if raw is not None} == {4, 12, 13}


def test_a_hole_holds_zeros_or_what_was_given_up_last() -> None:
    disk, directory = disk_with({"d/f": b"AAAA", "d/old": b"ghostghost!!"})
    directory.remove("old")
    directory.sync()
    write(disk, directory, b"BBBB", 4)
    assert files(disk) == {b"AAAA", b"AAAABBBB", b"AAAA\0\0\0\0", b"AAAAtgho"}


def test_a_gap_that_a_write_leaves_is_a_hole_too() -> None:
    disk, directory = disk_with({"d/f": b"AAAA", "d/old": b"ghostghost!!"})
    directory.remove("old")
    directory.sync()
    write(disk, directory, b"BBBB", 8)
    assert {b"AAAA", b"AAAA\0\0\0\0BBBB", b"AAAAtghoBBBB"} < files(disk)


def test_a_hole_holds_what_was_cut_off_of_the_same_file() -> None:
    disk, directory = disk_with({"d/f": b"AAAAold!"})
    file = directory.open("f", writable=True)
    disk.truncate(file, 4)
    disk.sync(file)
    disk.write(file, b"new!", 4)
    expected = {b"AAAA", b"AAAAnew!", b"AAAA\0\0\0\0", b"AAAAold!"}
    assert files(disk) == expected


def test_older_bytes_of_a_disk_turn_up_where_its_files_grow() -> None:
    older = {"d/f": b"AAAAold!"}
    disk = SimulatedDisk({**HERE, "d/f": b"AAAA"}, sector_bytes=4, older=older)
    write(disk, disk.open_directory("d"), b"new!", 4)
    assert b"AAAAold!" in files(disk)


def test_a_cut_file_may_come_back_whole() -> None:
    disk, directory = disk_with({"d/f": b"AAAABBBB"})
    disk.truncate(directory.open("f", writable=True), 2)
    assert {b"AA", b"AAAABBBB"} <= files(disk)


def test_an_fsync_settles_the_bytes_and_the_length() -> None:
    disk, directory = disk_with({"d/f": b"AAAA"})
    disk.sync(write(disk, directory, b"BBBBB", 2))
    assert files(disk) == {b"AABBBBB"}


def test_an_fsync_of_one_file_is_none_of_another() -> None:
    disk, directory = disk_with({"d/f": b"AAAA", "d/g": b"GGGG"})
    write(disk, directory, b"BBBB", 0)
    disk.sync(directory.open("g"))
    assert files(disk) == {b"AAAA", b"BBBB"}


def test_what_an_fsync_was_for_is_seen_by_whoever_has_the_file_open() -> None:
    """An fsync through a descriptor that was opened for reading settles the file."""
    disk, directory = disk_with({"d/f": b"AAAA"})
    write(disk, directory, b"BBBB", 0)
    disk.sync(directory.open("f"))
    assert files(disk) == {b"BBBB"}


@pytest.mark.parametrize("drops", [False, True])
def test_after_a_failed_fsync_the_next_one_does_not_ask_again(drops: bool) -> None:
    disk, directory = disk_with({"d/f": b"AAAA"})
    disk.drops_pages = drops
    file = write(disk, directory, b"BBBB", 0)
    failing(disk, "sync")
    with pytest.raises(OSError, match="made to fail"):
        disk.sync(file)
    disk.fault = no_fault
    disk.sync(file)
    assert files(disk) == {b"AAAA", b"BBBB"}, "a second fsync has made up for the first"
    assert disk.read(file, 4, 0) == (b"AAAA" if drops else b"BBBB")


def test_bytes_written_after_a_failed_fsync_are_settled_by_the_next() -> None:
    disk, directory = disk_with({"d/f": b"AAAABBBB"})
    file = write(disk, directory, b"xxxx", 0)
    failing(disk, "sync")
    with pytest.raises(OSError, match="made to fail"):
        disk.sync(file)
    disk.fault = no_fault
    disk.write(file, b"yyyy", 4)
    disk.sync(file)
    assert files(disk) == {b"AAAAyyyy", b"xxxxyyyy"}


def test_the_length_that_a_failed_fsync_was_for_stays_in_doubt() -> None:
    disk, directory = disk_with({"d/f": b"AAAA"})
    file = write(disk, directory, b"BBBB", 4)
    failing(disk, "sync")
    with pytest.raises(OSError, match="made to fail"):
        disk.sync(file)
    disk.fault = no_fault
    disk.write(file, b"CCCC", 0)
    disk.sync(file)
    assert files(disk) == {b"CCCC", b"CCCCBBBB", b"CCCC\0\0\0\0"}


def test_a_file_alone_can_be_asked_for_its_states() -> None:
    file = Inode("f", 4, b"AAAABBBB")
    file.write(b"xx", 6)
    file.write(b"yyy", 7)
    assert bytes(file.seen) == b"AAAABBxyyy"
    assert [len(doubt.ways) for doubt in file.doubts()] == [2, 3, 2]
    assert file.content(iter([1, 1, 0]), stale=None) == b"AAAABBxx\0\0"
    assert file.content(iter([0, 2, 1]), stale=None) == b"AAAABBxy"


# Names


def test_a_new_file_may_be_missing_until_its_directory_is_synced() -> None:
    disk, directory = disk_with({})
    disk.sync(directory.create("f"))
    assert names(disk) == {("d/",), ("d/", "d/f")}
    directory.sync()
    assert names(disk) == {("d/", "d/f")}


def test_a_removed_file_may_still_be_there() -> None:
    disk, directory = disk_with({"d/f": b"AAAA"})
    directory.remove("f")
    assert files(disk) == {b"AAAA", None}
    directory.sync()
    assert files(disk) == {None}


def test_a_rename_is_done_or_lost_and_the_target_is_always_there() -> None:
    disk, directory = disk_with({"d/new": b"new.", "d/f": b"old."})
    directory.rename("new", "f")
    assert states(disk) == [
        {"d/": b"", "d/new": b"new.", "d/f": b"old."},
        {"d/": b"", "d/f": b"new."},
    ]
    directory.sync()
    assert states(disk) == [{"d/": b"", "d/f": b"new."}]


def test_of_two_renames_the_second_may_arrive_alone() -> None:
    disk, directory = disk_with({"d/f": b"old.", "d/new": b"new."})
    directory.rename("new", "f")
    directory.rename("f", "g")
    alone = {"d/": b"", "d/f": b"old.", "d/new": b"new.", "d/g": b"new."}
    assert alone in states(disk), "a name was taken away that leads to another file"
    assert len(states(disk)) == 4


def test_a_renamed_file_keeps_the_doubts_about_its_bytes() -> None:
    disk, directory = disk_with({"d/f": b"old."})
    disk.write(directory.create("new"), b"new.", 0)
    directory.rename("new", "f")
    directory.sync()
    assert files(disk) == {b"", b"new.", b"\0\0\0\0", b"old."}


def test_names_arrive_in_any_order() -> None:
    disk, directory = disk_with({})
    for name in "ab":
        disk.sync(directory.create(name))
    found = {(), ("d/a",), ("d/b",), ("d/a", "d/b")}
    assert names(disk) == {("d/", *each) for each in found}


def test_what_is_in_a_directory_is_found_only_if_its_own_name_is_there() -> None:
    disk = SimulatedDisk()
    failing(disk, "sync_directory")
    with pytest.raises(OSError, match="made to fail"):
        disk.make_directory("d")
    disk.fault = no_fault
    directory = disk.open_directory("d")
    disk.sync(directory.create("f"))
    directory.sync()
    assert names(disk) == {(), ("d/", "d/f")}
    disk.make_directory("d")
    assert names(disk) == {("d/", "d/f")}, (
        "a directory that exists was not made durable"
    )


def test_an_fsync_of_a_directory_that_failed_is_asked_for_again() -> None:
    disk, directory = disk_with({"d/f": b""})
    directory.remove("f")
    failing(disk, "sync_directory")
    with pytest.raises(OSError, match="made to fail"):
        directory.sync()
    disk.fault = no_fault
    assert files(disk) == {b"", None}
    directory.sync()
    assert files(disk) == {None}


def test_a_directory_that_another_process_moves_goes_with_all_that_is_in_it() -> None:
    disk, _ = disk_with({"d/f": b"AAAA"})
    disk.move("d", "e")
    assert names(disk) == {("d/", "d/f"), ("e/", "e/f")}
    disk.open_directory("/").sync()
    assert names(disk) == {("e/", "e/f")}


def test_an_fsync_in_a_moved_directory_does_not_settle_the_move() -> None:
    disk, directory = disk_with({})
    disk.move("d", "e")
    disk.sync(directory.create("f"))
    directory.sync()
    assert names(disk) == {("d/", "d/f"), ("e/", "e/f")}


def test_a_move_between_directories_waits_for_both() -> None:
    for order in ("de", "ed"):
        disk, _ = disk_with({"d/f": b"AAAA", "e/": b""})
        disk.move("d/f", "e/f")
        both = {("d/", "d/f", "e/"), ("d/", "e/", "e/f")}
        assert names(disk) == both, "a file is lost, or in two places"
        disk.open_directory(order[0]).sync()
        assert names(disk) == both, f"{order[0]} alone has settled the move"
        disk.open_directory(order[1]).sync()
        assert names(disk) == {("d/", "e/", "e/f")}


def test_what_follows_on_a_move_in_doubt_is_done_after_it() -> None:
    disk, _ = disk_with({"d/f": b"AAAA", "e/": b""})
    disk.move("d/f", "e/f")
    e = disk.open_directory("e")
    e.remove("f")
    e.sync()
    assert names(disk) == {("d/", "d/f", "e/"), ("d/", "e/")}, "a removed file is back"
    disk.open_directory("d").sync()
    assert names(disk) == {("d/", "e/")}


def test_a_directory_is_never_in_two_places() -> None:
    disk, _ = disk_with({"d/f": b"AAAA"})
    for source, target in (("d", "e"), ("e", "g"), ("g", "h")):
        disk.move(source, target)
    for image in states(disk):
        assert sum(path.endswith("/f") for path in image) == 1, image


def test_directories_moved_into_each_other_and_back_end_nowhere_or_somewhere() -> None:
    disk = SimulatedDisk({"x/f": b"x", "y/f": b"y"})
    for source, target in (
        *(("x", "z"), ("z", "y/z"), ("y/z", "w"), ("y", "w/y")),
        *(("w/y", "y"), ("w", "y/w")),
    ):
        disk.move(source, target)
    for image in states(disk):
        assert set(image.values()) <= {b"", b"x", b"y"}
        assert len(image) <= 4


def test_a_tree_that_is_removed_goes_name_by_name() -> None:
    disk, _ = disk_with({"d/f": b"F", "d/g": b"G"})
    disk.remove_tree("d")
    inside = {(), ("d/f",), ("d/g",), ("d/f", "d/g")}
    assert names(disk) == {(), *(("d/", *each) for each in inside)}
    disk.open_directory("/").sync()
    assert names(disk) == {()}


def test_a_link_shows_the_same_states_as_the_file() -> None:
    disk, directory = disk_with({"d/f": b"AAAA"})
    disk.link("d/f", "d/g")
    directory.sync()
    write(disk, directory, b"BBBB", 0)
    assert {(i["d/f"], i["d/g"]) for i in states(disk)} == {
        (b"AAAA", b"AAAA"),
        (b"BBBB", b"BBBB"),
    }


def test_only_the_last_name_gives_up_the_bytes() -> None:
    disk, directory = disk_with({"d/f": b"AAAA", "d/old": b"....GONE"})
    disk.link("d/old", "d/kept")
    disk.remove_tree("d/old")
    directory.sync()
    write(disk, directory, b"BBBB", 4)
    assert b"AAAAGONE" not in files(disk)
    disk.remove_tree("d/kept")
    directory.sync()
    assert b"AAAAGONE" in files(disk)


# Outcomes


def test_outcomes_are_described_in_words() -> None:
    disk, directory = disk_with({"d/f": b"AAAA", "d/g": b""})
    write(disk, directory, b"BBBB", 0)
    write(disk, directory, b"CCCCCC", 0)
    directory.rename("g", "h")
    disk.make_directory("e")
    disk.move("e", "i")
    cut = disk.power_cut()
    text = cut.describe(tuple(len(doubt.ways) - 1 for doubt in cut.doubts))
    assert text == (
        "what was never written: stale bytes; "
        "the renaming of d/g to d/h: done; the renaming of e/ to i/: done; "
        "d/f: 6 bytes long; sector 0 of d/f: as written last; "
        "sector 1 of d/f: as written last"
    )
    oldest = cut.describe((0,) * len(cut.doubts))
    assert "sector 0 of d/f: as synced; sector 1 of d/f: never written" in oldest
    assert "d/f: 4 bytes long" in oldest
    ways = {doubt.about: doubt.ways for doubt in cut.doubts}
    assert ways["sector 0 of d/f"][1] == "as written 1 before the last"


def test_all_the_oldest_ways_are_what_was_settled_and_the_newest_what_is_seen() -> None:
    before = {"d/": b"", "d/f": b"AAAA", "d/g": b"G"}
    disk, directory = disk_with(before)
    write(disk, directory, b"BBBBBBBB", 2)
    directory.rename("g", "h")
    directory.create("new")
    cut = disk.power_cut()
    assert cut.image((0,) * len(cut.doubts)) == before
    newest = tuple(len(doubt.ways) - 1 for doubt in cut.doubts)
    assert cut.image(newest) == disk.image()


def in_much_doubt() -> PowerCut:
    disk, directory = disk_with({"d/f": bytes(40)}, sector_bytes=1)
    write(disk, directory, b"x" * 40, 0)
    return disk.power_cut()


def test_every_outcome_is_seen_up_to_the_limit_and_draws_above() -> None:
    disk, directory = disk_with({"d/f": b"AAAABBBB"})
    write(disk, directory, b"xxxxyyyy", 0)
    cut = disk.power_cut()
    assert len(list(cut.images(4))) == 4 == cut.outcomes
    assert len(list(cut.images(3))) <= 3
    cut = in_much_doubt()
    assert cut.outcomes == 2**40
    drawn = [image["d/f"] for _, image in cut.images(200)]
    assert len(drawn) == len(set(drawn)), "the same state twice"
    assert len(drawn) > 100


def test_the_seed_decides_what_is_drawn_and_picks_replay_it() -> None:
    cut = in_much_doubt()
    assert list(cut.images(20, 1)) == list(cut.images(20, 1))
    assert list(cut.images(20, 1)) != list(cut.images(20, 2))
    for picks, image in cut.images(20, 3):
        assert cut.image(picks) == image


def test_draws_often_show_one_stretch_that_differs_from_the_rest() -> None:
    chance, sizes = random.Random(5), [2] * 30
    drawn = {draw(sizes, chance) for _ in range(500)}
    edges = [sum(a != b for a, b in itertools.pairwise(picks)) for picks in drawn]
    assert sum(count <= 2 for count in edges) > 50, "one hole hardly ever shows"
    assert 1 in edges, "a log that is torn at one point never shows"
    assert all(0 <= pick < 2 for picks in drawn for pick in picks)
    assert draw([1, 1], chance) == (0, 0)
