"""What a power cut may leave: every state, counted and named, on disks of a few bytes."""

from __future__ import annotations

import errno
import itertools
import random

import pytest

from kvstore.powercut import Image, Inode, PowerCut, draw
from kvstore.simdisk import Operation, SimulatedDisk, no_fault


def fail_every_fsync(operation: Operation) -> None:
    if operation.name in ("sync", "sync_directory"):
        raise OSError(errno.EIO, "made to fail", operation.path)


def take(disk: SimulatedDisk, *words: str) -> None:
    """Do one thing to a disk."""
    folder, _, name = words[1].rpartition("/")
    match words:
        case "fail", *rest:
            disk.fault = fail_every_fsync
            with pytest.raises(OSError, match="made to fail"):
                take(disk, *rest)
            disk.fault = no_fault
        case "write", _, offset, data:
            file = disk.open_directory(folder).open(name, writable=True)
            disk.write(file, data.encode(), int(offset))
        case "cut", _, length:
            file = disk.open_directory(folder).open(name, writable=True)
            disk.truncate(file, int(length))
        case "create", _:
            disk.open_directory(folder).create(name)
        case "remove", _:
            disk.open_directory(folder).remove(name)
        case "rename", _, new:
            disk.open_directory(folder).rename(name, new)
        case "sync", _ if name:
            disk.sync(disk.open_directory(folder).open(name))
        case "sync", _:
            disk.open_directory(folder or "/").sync()
        case call, *paths:  # of another process
            getattr(disk, call)(*paths)


def disk_after(before: str, steps: str = "", sector_bytes: int = 4) -> SimulatedDisk:
    """Return a disk with some files to which some things were done."""
    pairs = [each.split("=") for each in before.split()]
    image = {path: raw.encode() for path, raw in pairs}
    disk = SimulatedDisk({"d/": b"", **image}, sector_bytes=sector_bytes)
    for step in filter(None, steps.strip().split(", ")):
        take(disk, *step.split())
    return disk


def states(disk: SimulatedDisk) -> list[Image]:
    """Return every state that a power cut may leave, all of them."""
    cut = disk.power_cut()
    assert cut.outcomes <= 10_000, "this test is not as small as it should be"
    return [image for _, image in cut.images(cut.outcomes)]


def in_words(raw: bytes) -> str:
    return raw.decode().replace("\0", "_")


def table(text: str) -> list[object]:
    """Return the cases of a table: a promise; files, and what is done; what may be left."""
    cases: list[object] = []
    for entry in text.strip().split("\n\n"):
        promise, change, left = entry.split("\n")
        before, _, steps = change.partition(":")
        cases.append(pytest.param(before, steps, {*left.split(" | ")}, id=promise))
    return cases


BYTES = """
what is settled is left as it is
d/f=12345678:
12345678

each sector arrives or not, whatever the others do
d/f=AAAABBBB: write d/f 0 xxxxyyyy
AAAABBBB | xxxxBBBB | AAAAyyyy | xxxxyyyy

a sector holds any version since the last fsync
d/f=AAAA: write d/f 0 one., write d/f 0 two., write d/f 0 last
AAAA | one. | two. | last

a write that changes nothing leaves no doubt
d/f=AAAA: write d/f 1 AA
AAAA

the length is one that the file had and none between
d/f=AAAA: write d/f 4 BBBBCCCC
AAAA | AAAABBBBCCCC | AAAABBBB____ | AAAA____CCCC | AAAA________

a hole holds zeros or what was given up last
d/f=AAAA d/old=ghostghost!!: remove d/old, sync d/, write d/f 4 BBBB
AAAA | AAAABBBB | AAAA____ | AAAAtgho

a gap that a write leaves is a hole too
d/f=AAAA d/old=ghostghost!!: remove d/old, sync d/, write d/f 8 BBBB
AAAA | AAAA____BBBB | AAAA________ | AAAAtghoBBBB | AAAAtghost!! | AAAA____st!!

a hole holds what was cut off of the same file
d/f=AAAAold!: cut d/f 4, sync d/f, write d/f 4 new!
AAAA | AAAAnew! | AAAA____ | AAAAold!

a file that has another name gives up nothing
d/f=AAAA d/g=ghostghost!!: link d/g d/h, remove d/g, sync d/, write d/f 4 BBBB
AAAA | AAAABBBB | AAAA____

a cut file may come back whole
d/f=AAAABBBB: cut d/f 4
AAAA | AAAABBBB | AAAA____

an fsync settles the bytes and the length, whoever has the file open
d/f=AAAA: write d/f 2 BBBBB, sync d/f
AABBBBB

an fsync of one file is none of another
d/f=AAAA d/g=GGGG: write d/f 0 BBBB, sync d/g
AAAA | BBBB

after a failed fsync the next one does not ask again
d/f=AAAA: write d/f 0 BBBB, fail sync d/f, sync d/f
AAAA | BBBB

what is written after a failed fsync is settled by the next
d/f=AAAABBBB: write d/f 0 xxxx, fail sync d/f, write d/f 4 yyyy, sync d/f
AAAAyyyy | xxxxyyyy

the length that a failed fsync was for stays in doubt
d/f=AAAA: write d/f 4 BBBB, fail sync d/f, write d/f 0 CCCC, sync d/f
CCCC | CCCCBBBB | CCCC____
"""


@pytest.mark.parametrize(("before", "steps", "left"), table(BYTES))
def test_of_the_bytes_of_a_file(before: str, steps: str, left: set[str]) -> None:
    found = states(disk_after(before, steps))
    assert {in_words(image["d/f"]) for image in found} == left


NAMES = """
a new file may be missing
: create d/f
d/ | d/ d/f

an fsync of the directory settles all its names
d/new=N d/f=O d/gone=G: create d/a, rename d/new f, remove d/gone, sync d/
d/ d/a d/f=N

names arrive in any order
: create d/a, create d/b
d/ | d/ d/a | d/ d/b | d/ d/a d/b

a removed file may still be there
d/f=F: remove d/f
d/ d/f=F | d/

a rename is done or lost, and the target is always there
d/new=new. d/f=old.: rename d/new f
d/ d/f=old. d/new=new. | d/ d/f=new.

of two renames the second may arrive alone, and no name leads to another file
d/new=N d/f=O: rename d/new f, rename d/f g
d/ d/f=O d/new=N | d/ d/f=N | d/ d/g=N | d/ d/f=O d/g=N d/new=N

a renamed file keeps the doubts about its bytes
d/f=old.: write d/f 0 new., rename d/f g, sync d/
d/ d/g=old. | d/ d/g=new.

what is in a directory is found only if its own name is there
: fail make_directory e, create e/f, sync e/
d/ | d/ e/ e/f

a directory that exists is made durable
: fail make_directory e, make_directory e
d/ e/

an fsync of a directory that failed settles nothing
d/f=F: remove d/f, fail sync d/
d/ d/f=F | d/

an fsync of a directory that failed is asked for again
d/f=F: remove d/f, fail sync d/, sync d/
d/

a directory that moves goes with all that is in it
d/f=F: move d e
d/ d/f=F | e/ e/f=F

a move is settled by an fsync above
d/f=F: move d e, sync /
e/ e/f=F

an fsync in a moved directory does not settle the move
: move d e, create e/f, sync e/
d/ d/f | e/ e/f

a file that is moved is in one of two places
d/f=F e/=: move d/f e/f
d/ d/f=F e/ | d/ e/ e/f=F

an fsync of the old place alone settles no move
d/f=F e/=: move d/f e/f, sync d/
d/ d/f=F e/ | d/ e/ e/f=F

an fsync of the new place alone settles no move
d/f=F e/=: move d/f e/f, sync e/
d/ d/f=F e/ | d/ e/ e/f=F

fsyncs of the old place and the new settle a move
d/f=F e/=: move d/f e/f, sync d/, sync e/
d/ e/ e/f=F

fsyncs of the new place and the old settle a move
d/f=F e/=: move d/f e/f, sync e/, sync d/
d/ e/ e/f=F

what follows on a move in doubt is done after it
d/f=F e/=: move d/f e/f, remove e/f, sync e/
d/ d/f=F e/ | d/ e/

a directory is never in two places
d/f=F: move d e, move e g, move g h
d/ d/f=F | e/ e/f=F | g/ g/f=F | h/ h/f=F

a tree that is removed goes name by name
d/f=F d/g=G: remove_tree d
nothing | d/ | d/ d/f=F | d/ d/g=G | d/ d/f=F d/g=G

a link shows the same states as the file
d/f=F: link d/f d/g, sync d/, write d/f 0 N
d/ d/f=F d/g=F | d/ d/f=N d/g=N
"""


@pytest.mark.parametrize(("before", "steps", "left"), table(NAMES))
def test_of_names(before: str, steps: str, left: set[str]) -> None:
    found = set()
    for image in states(disk_after(before, steps)):
        held = [f"{path}={in_words(raw)}".strip("=") for path, raw in image.items()]
        found.add(" ".join(sorted(held)) or "nothing")
    assert found == left


def test_older_bytes_of_a_disk_turn_up_where_its_files_grow() -> None:
    disk = SimulatedDisk({"d/f": b"AAAA"}, sector_bytes=4, older={"d/f": b"AAAAold!"})
    take(disk, "write", "d/f", "4", "new!")
    assert b"AAAAold!" in {image["d/f"] for image in states(disk)}


@pytest.mark.parametrize("drops", [False, True])
def test_after_a_failed_fsync_the_new_bytes_are_seen_or_the_old(drops: bool) -> None:
    disk = disk_after("d/f=AAAA", "write d/f 0 BBBBBB")
    disk.drops_pages = drops
    take(disk, "fail", "sync", "d/f")
    assert disk.image()["d/f"] == (b"AAAA" if drops else b"BBBBBB")


def test_a_file_alone_can_be_asked_for_its_states() -> None:
    file = Inode("f", 4, b"AAAABBBB")
    file.write(b"xx", 6)
    file.write(b"yyy", 7)
    assert bytes(file.seen) == b"AAAABBxyyy"
    assert [len(doubt.ways) for doubt in file.doubts()] == [2, 3, 2]
    assert file.content(iter([1, 1, 0]), stale=None) == b"AAAABBxx\0\0"
    assert file.content(iter([0, 2, 1]), stale=None) == b"AAAABBxy"


def test_directories_moved_into_each_other_and_back_end_nowhere_or_somewhere() -> None:
    moves = "move x z, move z y/z, move y/z w, move y w/y, move w/y y, move w y/w"
    for image in states(disk_after("x/f=x y/f=y", moves)):
        assert set(image.values()) <= {b"", b"x", b"y"}
        assert len(image) <= 5


# Outcomes


def test_outcomes_are_described_in_words() -> None:
    disk = disk_after(
        "d/f=AAAA d/g=",
        "write d/f 0 BBBB, write d/f 0 CCCCCC, rename d/g h, make_directory e, move e i",
    )
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
    disk = disk_after(
        "d/f=AAAA d/g=G", "write d/f 2 BBBBBBBB, rename d/g h, create d/new"
    )
    cut = disk.power_cut()
    before = {"d/": b"", "d/f": b"AAAA", "d/g": b"G"}
    assert cut.image((0,) * len(cut.doubts)) == before
    newest = tuple(len(doubt.ways) - 1 for doubt in cut.doubts)
    assert cut.image(newest) == disk.image()


def in_much_doubt() -> PowerCut:
    ones, twos = "1" * 40, "2" * 40
    return disk_after(f"d/f={ones}", f"write d/f 0 {twos}", sector_bytes=1).power_cut()


def test_every_outcome_is_seen_up_to_the_limit_and_draws_above() -> None:
    cut = disk_after("d/f=AAAABBBB", "write d/f 0 xxxxyyyy").power_cut()
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
