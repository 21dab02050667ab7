"""Put the pictures that cells draw into the page itself.

A cell's SVG would become a file of its own behind an <img>, where it can't take on the colours
of the page. In the page it can: dark letters on a light page, light ones on a dark page.
"""

from __future__ import annotations

from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.typing import ExtensionMetadata


def _put_inline(app: Sphinx, document: nodes.document) -> None:
    for image in list(document.findall(nodes.image)):
        # A path that begins with a slash begins at the folder of the book's settings.
        path = Path(app.srcdir, image["uri"].lstrip("/"))
        is_output = any("cell_output" in each["classes"] for each in _around(image))
        if is_output and path.suffix == ".svg" and path.is_file():
            svg = path.read_text(encoding="utf-8")
            html = f'<div class="output svg">{svg}</div>'
            image.replace_self(nodes.raw("", html, format="html"))


def _around(node: nodes.Node) -> list[nodes.Element]:
    """Return the elements that a node stands in, the nearest first."""
    found = []
    while (node := node.parent) is not None:
        found.append(node)
    return found


def setup(app: Sphinx) -> ExtensionMetadata:
    # Before Sphinx collects the pictures of a page, which it does at the usual priority.
    app.connect("doctree-read", _put_inline, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
