from __future__ import annotations

import signal
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

# A shell without job control starts what stands before "&" with Ctrl-C ignored, and so would be all commands that tests
# start: a test that interrupts one would wait for its end for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Sixty-four COCO photographs with masks and two with panoptic truth, when they lie beside the checkout."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no COCO sample beside the checkout (looked for {folder.name}/ in ../shared)")
    return folder
