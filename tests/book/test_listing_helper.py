"""The helper that finds a piece of the package by its name."""

from __future__ import annotations

from pathlib import Path

import listing
import pytest

SOURCE = '''\
"""A module."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from os import PathLike

# Numbers on the disk.
PUT = 1
DELETE = 2  # a tombstone
assert PUT != DELETE

HEAD: int = 15
"""Bytes before the key."""


# A comment that stands apart.

def encode(
    key: bytes,
) -> bytes:
    """Return bytes."""
    return key
    # deeper, and so still a part of it


@os.fspath
class Segment(
    dict[str, int],
):
    """One file."""

    size: int = 0

    # what it is called
    @property
    def name(self) -> str:
        return "a"

    @name.setter
    def name(self, new: str) -> None:
        pass

    def read(self, n: int) -> bytes:
        """Read.

        A blank line above.
        """
        return b""

    __hash__ = None

    # the last words of the class


if os.name == "nt":

    def lock() -> None:
        return None

else:

    def lock() -> None:
        pass


class Bare(Exception):
    def method(self) -> None: ...
'''


@pytest.fixture(autouse=True)
def sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a module of our own in the package's place."""
    path = tmp_path / "sample.py"
    path.write_text(SOURCE, encoding="utf-8")
    monkeypatch.setattr(listing, "module_path", lambda _: path)
    return path


def source(*names: str, head: bool = False) -> str:
    return listing.show(*names, head=head).source


def test_the_head_of_a_module_ends_with_its_imports() -> None:
    assert source("sample").startswith('"""A module."""\n\nfrom __future__')
    assert source("sample").endswith("if TYPE_CHECKING:\n    from os import PathLike")


def test_a_piece_takes_the_comment_above_and_what_has_no_name_below() -> None:
    assert source("sample.PUT") == "# Numbers on the disk.\nPUT = 1"
    assert source("sample.DELETE").endswith("assert PUT != DELETE")
    assert source("sample.HEAD") == 'HEAD: int = 15\n"""Bytes before the key."""'
    assert source("sample.encode").startswith("# A comment that stands apart.\n\ndef")
    assert source("sample.encode").endswith("# deeper, and so still a part of it")


def test_neighbours_are_joined_as_they_stand_and_a_gap_is_marked() -> None:
    joined = source("sample.PUT", "sample.DELETE", "sample.HEAD")
    assert "PUT = 1\nDELETE = 2  # a tombstone\nassert" in joined
    assert "DELETE\n\nHEAD" in joined
    assert "PUT = 1\n\n# ...\n\nHEAD" in source("sample.PUT", "sample.HEAD")


def test_a_class_is_whole_or_its_head() -> None:
    assert source("sample.Segment").startswith("@os.fspath\nclass Segment(")
    assert source("sample.Segment").endswith("    # the last words of the class")
    head = source("sample.Segment", head=True)
    assert head.startswith("@os.fspath")
    assert head.endswith("    size: int = 0")
    assert source("sample.Bare", head=True) == "class Bare(Exception):"


def test_a_method_moves_to_the_margin_unless_its_class_is_there() -> None:
    assert source("sample.Segment.read").startswith("def read(self, n: int)")
    assert "\n\n    A blank line above." in source("sample.Segment.read")
    assert source("sample.Segment.__hash__").startswith("__hash__ = None\n\n# the last")
    both = source("sample.Segment", "sample.Segment.read", head=True)
    assert "size: int = 0\n\n    # ...\n\n    def read" in both


def test_names_that_are_defined_twice_are_shown_twice() -> None:
    name = source("sample.Segment.name")
    assert name.startswith("# what it is called\n@property")
    assert "\n\n@name.setter\n" in name
    assert source("sample.lock").count("def lock") == 2


def test_every_line_belongs_to_exactly_one_name() -> None:
    names = ["sample"]
    names += [f"sample.{name}" for name in ("PUT", "DELETE", "HEAD", "encode", "lock")]
    names += [f"sample.Segment.{name}" for name in ("name", "read", "__hash__")]
    names += ["sample.Bare.method"]
    shown = [number for name in names for number in listing.lines_of(name)[1]]
    for name in ("sample.Segment", "sample.Bare"):
        shown += listing.lines_of(name, head=True)[1]
    lines = SOURCE.splitlines()
    filled = [n for n, line in enumerate(lines, start=1) if line.strip()]
    assert sorted(n for n in shown if lines[n - 1].strip()) == filled


def test_a_listing_says_where_it_comes_from_in_markdown_and_in_plain_text() -> None:
    shown = listing.show("sample.PUT", "sample.DELETE", again=True)
    markdown = shown._repr_markdown_()
    title = "**`kvstore/sample.py` · `PUT`, `DELETE`** *shown again*"
    assert markdown == f"{title}\n\n```python\n{shown.source}\n```"
    title = "kvstore/sample.py · PUT, DELETE (shown again)"
    assert repr(shown) == f"{title}\n\n{shown.source}"


def test_a_fence_is_longer_than_any_in_the_source(sample: Path) -> None:
    sample.write_text('"""```"""\n', encoding="utf-8")
    assert (
        listing.show("sample")
        ._repr_markdown_()
        .endswith('\n````python\n"""```"""\n````')
    )


def test_a_wrong_name_names_those_that_are_near() -> None:
    with pytest.raises(LookupError, match=r"no 'sample\.encod'.*sample\.encode"):
        listing.show("sample.encod")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ((), "needs a name"),
        (("sample.PUT", "other.PUT"), "one module, not other, sample"),
        (("sample.Segment", "sample.Segment.read"), "is in this listing twice"),
        (("sample.PUT", "sample.HEAD", "sample.PUT"), "is in this listing twice"),
    ],
)
def test_a_listing_that_makes_no_sense_says_why(
    names: tuple[str, ...], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        listing.show(*names)
