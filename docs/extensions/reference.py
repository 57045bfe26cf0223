"""Pages of the API reference, one for each folder of the package, written anew at every build.

Nothing lists modules by hand, so that a new module is in the reference as soon as it exists.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

PACKAGE = "s2uniseg_d2"
FOLDER = "api"


def modules_by_page(package: Path) -> dict[str, list[str]]:
    """Dotted names of all public modules below a package folder, by the dotted name of the folder that holds them."""
    pages: dict[str, list[str]] = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        if any(part.startswith("_") for part in parts if part != "__init__"):
            continue
        page = ".".join(parts[:-1])
        pages.setdefault(page, [])
        if parts[-1] != "__init__":
            pages[page].append(".".join(parts))
    return pages


def write_pages(app: Sphinx) -> None:
    """Write `api/*.rst` below the source folder; a page that has not changed keeps its time."""
    folder = Path(app.srcdir) / FOLDER
    folder.mkdir(exist_ok=True)
    # Tests build the rest of the site in seconds: without what imports the package.
    pages = {} if "without_reference" in app.tags else modules_by_page(Path(app.srcdir).parent / PACKAGE)
    written = {"index": _index(pages)} | {page: _page(page, modules) for page, modules in pages.items()}
    for stale in {path.stem for path in folder.glob("*.rst")} - set(written):
        (folder / f"{stale}.rst").unlink()
    for name, text in written.items():
        path = folder / f"{name}.rst"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def _index(pages: dict[str, list[str]]) -> str:
    entries = "\n".join(f"   {page}" for page in pages)
    words = (
        "Every public module, from its docstrings. ``s2uniseg_d2.core`` is plain PyTorch and can be used without\n"
        "Detectron2; ``import s2uniseg_d2.modeling`` registers the rest with it."
    )
    toctree = f".. toctree::\n   :maxdepth: 2\n\n{entries}\n" if pages else ""
    return f"{_title('API reference')}\n{words}\n\n{toctree}"


def _page(page: str, modules: list[str]) -> str:
    # What a folder offers from its modules is described there, once.
    blocks = [_title(page), f".. automodule:: {page}\n   :ignore-module-all:\n"]
    for module in modules:
        blocks += [_title(module.rpartition(".")[2], "-"), f".. automodule:: {module}\n"]
    return "\n".join(blocks)


def _title(text: str, line: str = "=") -> str:
    return f"{text}\n{line * len(text)}\n"


def skip_fields(_app: Sphinx, _what: str, _name: str, member: Any, _skip: bool, _options: Any) -> bool | None:
    """Leave out the fields of named tuples, which their class describes under "Attributes"."""
    text = getattr(member, "__doc__", None) or ""
    return True if text.startswith("Alias for field number") else None


def escape_bars(_app: Sphinx, _what: str, _name: str, _object: Any, _options: Any, lines: list[str]) -> None:
    """Take |x| in a docstring for what it is, an absolute value, and not for a substitution of reStructuredText."""
    lines[:] = re.sub(
        r"(``.*?``|`[^`]*`)|\|", lambda found: found[1] or r"\|", "\n".join(lines), flags=re.DOTALL
    ).split("\n")


def setup(app: Sphinx) -> dict[str, bool]:
    """Write the pages before the sources are looked for."""
    app.connect("builder-inited", write_pages)
    app.connect("autodoc-skip-member", skip_fields)
    app.connect("autodoc-process-docstring", escape_bars)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
