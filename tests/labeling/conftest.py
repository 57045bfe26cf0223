from __future__ import annotations

import pytest

from s2uniseg_d2.labeling.maker import PseudoMaskMaker
from tests.labeling.words import WORDS
from tests.tiny import write_pictures


@pytest.fixture(scope="session")
def maker():
    """The tiny random encoder: not to be changed."""
    return PseudoMaskMaker.from_pretrained("", overrides=WORDS)


@pytest.fixture
def pictures(tmp_path):
    """A folder of five small pictures."""
    return write_pictures(tmp_path / "pictures", count=5, size=(48, 64))
