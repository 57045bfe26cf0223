"""Files that are there whole or not at all, even if a run is killed or two processes write the same one."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path of one's own to write to, which takes the place of ``path`` at the end; makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: str | Path, content: Any, indent: int | None = None) -> None:
    """Write a JSON file, and its folder, so that it is there whole or not at all."""
    with replacing(Path(path)) as partial:
        partial.write_text(json.dumps(content, indent=indent), encoding="utf-8")
