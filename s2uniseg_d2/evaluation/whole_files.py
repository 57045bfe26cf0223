"""Files that are there whole or not at all, even if a run is killed or two processes write the same one."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_ENDING = ".partial"


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path of one's own to write to, which takes the place of ``path`` at the end; makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}{_ENDING}")
    # the system takes the lock back when a process is killed, which says that nobody writes this file any more
    with partial.open("wb") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_SH)
            yield partial
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def remove_partials(folder: Path) -> None:
    """Remove what killed writes have left below a folder; files that some process is writing stay."""
    for partial in folder.rglob(f".*.{'[0-9a-f]' * 8}{_ENDING}"):
        with contextlib.suppress(FileNotFoundError, BlockingIOError), partial.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            partial.unlink()


def write_json(path: str | Path, content: Any, indent: int | None = None) -> None:
    """Write a JSON file, and its folder, so that it is there whole or not at all."""
    with replacing(Path(path)) as partial:
        partial.write_text(json.dumps(content, indent=indent), encoding="utf-8")
