"""Pages whose text lies outside of `docs/`, where readers of the repository look for it.

A link there is relative to the repository; here the same link leads to the page of that file.
"""

from __future__ import annotations

import re
from pathlib import Path

from sphinx.application import Sphinx

PAGES = {
    "changelog": "CHANGELOG.md",
    "contributing": "CONTRIBUTING.md",
    "datasets": "datasets/README.md",
    "security": "SECURITY.md",
}


def move_links(text: str) -> str:
    """Return the text with links to files of the repository's root and of `docs/` as links to pages."""
    for page, file in PAGES.items():
        text = re.sub(rf"\]\({re.escape(file)}(#[^)]*)?\)", rf"]({page}.md\1)", text)
    return re.sub(r"\]\(docs/", "](", text)


def read_root_page(app: Sphinx, docname: str, source: list[str]) -> None:
    """Take the text of such a page from where it lies."""
    if docname in PAGES:
        path = Path(app.srcdir).parent / PAGES[docname]
        app.env.note_dependency(str(path))
        source[0] = move_links(path.read_text(encoding="utf-8"))


def setup(app: Sphinx) -> dict[str, bool]:
    """Read the pages before anything else sees their source."""
    app.connect("source-read", read_root_page, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
