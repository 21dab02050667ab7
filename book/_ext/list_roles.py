"""Give the entries of the bibliography the role that their list expects.

Sphinx marks them as `doc-biblioentry` inside a `list`. That role is deprecated, and a list may
hold only `listitem`, so a screen reader finds an empty list.
"""

from __future__ import annotations

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.typing import ExtensionMetadata


def _entries_as_items(
    _app: Sphinx,
    _page: str,
    _template: str,
    context: dict[str, object],
    _document: nodes.document | None,
) -> None:
    body = str(context.get("body", ""))
    context["body"] = body.replace('role="doc-biblioentry"', 'role="listitem"')


def setup(app: Sphinx) -> ExtensionMetadata:
    app.connect("html-page-context", _entries_as_items)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
