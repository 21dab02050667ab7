"""The book as it is built: without a warning, and asking nothing of any other host."""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.helpers import ROOT, run

# Attributes that make a browser fetch something when the page opens. A link that a reader may
# click (<a href>) is not among them, nor a <link> that only says what a page is about.
FETCHING = {
    "src": {"audio", "embed", "iframe", "img", "input", "script", "source", "track"}
    | {"video"},
    "srcset": {"img", "source"},
    "href": {"image", "link", "use"},
    "xlink:href": {"image", "use"},
    "data": {"object"},
    "poster": {"video"},
}
ELSEWHERE = re.compile(r"^\s*(?:https?:)?//", re.IGNORECASE)
IN_CSS = re.compile(
    r"""url\(\s*["']?((?:https?:)?//[^"')]+)|@import\s+["']((?:https?:)?//[^"']+)"""
)
IN_SCRIPT = re.compile(
    r"""(?:fetch|importScripts|import|Worker|WebSocket|EventSource|sendBeacon)\(\s*["'`]"""
    r"""((?:https?:|wss?:)?//[^"'`]+)|\.src\s*=\s*["'`]((?:https?:)?//[^"'`]+)"""
)


class Page(HTMLParser):
    """What a page fetches from other hosts, and which of its pictures have no words."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elsewhere: list[str] = []
        self.wordless: list[str] = []
        self.inside: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag in ("script", "style"):
            self.inside.append(tag)
        names = [name for name, tags in FETCHING.items() if tag in tags]
        if tag == "link" and given.get("rel") in ("canonical", "author", "license"):
            names = []
        for name in names:
            for address in given.get(name, "").split(","):
                if ELSEWHERE.match(address):
                    self.elsewhere.append(f"<{tag} {name}={address}>")
        self.elsewhere += [
            first or second for first, second in IN_CSS.findall(given.get("style", ""))
        ]
        if tag == "img" and "alt" not in given:
            self.wordless.append(f"<img src={given.get('src')}> has no alt")
        spoken = given.get("role") == "img" and given.get("aria-label")
        if tag == "svg" and not spoken and given.get("aria-hidden") != "true":
            self.wordless.append(f"<svg class={given.get('class')}> has no words")

    def handle_endtag(self, tag: str) -> None:
        if self.inside and self.inside[-1] == tag:
            self.inside.pop()

    def handle_data(self, data: str) -> None:
        if self.inside:
            pattern = IN_CSS if self.inside[-1] == "style" else IN_SCRIPT
            self.elsewhere += ["".join(found) for found in pattern.findall(data)]


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the built book."""
    target = tmp_path_factory.mktemp("book")
    jupyter_book = Path(sys.executable).with_name("jupyter-book")
    options = ["-W", "-n", "--keep-going", "--path-output", target]
    run(jupyter_book, "build", *options, ROOT, folder=ROOT)
    return target / "_build" / "html"


def pages(html: Path) -> list[Path]:
    found = sorted(html.rglob("*.html"))
    assert found
    return [path for path in found if "_static" not in path.relative_to(html).parts]


def documents() -> list[str]:
    """The files that the table of contents names."""
    toc = (ROOT / "_toc.yml").read_text(encoding="utf-8")
    return re.findall(r"^[\s-]*(?:root|file):\s*(\S+)", toc, re.MULTILINE)


def test_every_page_of_the_table_of_contents_is_built(html: Path) -> None:
    assert [name for name in documents() if not (html / f"{name}.html").is_file()] == []


def test_every_chapter_is_in_the_table_of_contents() -> None:
    stored = {f"book/{path.stem}" for path in (ROOT / "book").glob("*.ipynb")}
    stored |= {f"book/{path.stem}" for path in (ROOT / "book").glob("*.md")}
    assert stored == set(documents())


def test_no_page_asks_anything_of_another_host(html: Path) -> None:
    asked = {
        f"{path.relative_to(html)}: {address}"
        for path in pages(html)
        for address in Page(path.read_text(encoding="utf-8")).elsewhere
    }
    assert not asked


def test_no_style_sheet_and_no_script_asks_anything_of_another_host(html: Path) -> None:
    asked = set()
    for pattern, suffix in ((IN_CSS, "*.css"), (IN_SCRIPT, "*.js")):
        for path in html.rglob(suffix):
            for found in pattern.findall(path.read_text(encoding="utf-8")):
                asked.add(f"{path.relative_to(html)}: {''.join(found)}")
    assert not asked


def test_every_picture_has_words(html: Path) -> None:
    wordless = [
        f"{path.relative_to(html)}: {what}"
        for path in pages(html)
        for what in Page(path.read_text(encoding="utf-8")).wordless
    ]
    assert not wordless


def test_every_link_inside_the_book_leads_somewhere(html: Path) -> None:
    link = re.compile(r'<a\b[^>]*\bhref="(?![a-z]+:)([^"#?]+)')
    broken = [
        f"{path.relative_to(html)}: {href}"
        for path in pages(html)
        for href in link.findall(path.read_text(encoding="utf-8"))
        if not (path.parent / href).exists()
    ]
    assert not broken


def test_no_table_is_shown_as_the_text_that_it_is_written_in(html: Path) -> None:
    bars = re.compile(r"\| *(?:-{3}|\N{EM DASH}) *\|")
    assert [path.name for path in pages(html) if bars.search(path.read_text())] == []
