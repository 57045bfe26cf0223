from __future__ import annotations

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image


@pytest.fixture(autouse=True)
def _clean_catalogs():
    before = set(DatasetCatalog), set(MetadataCatalog)
    yield
    for catalog, names in zip((DatasetCatalog, MetadataCatalog), before, strict=True):
        for name in set(catalog) - names:
            catalog.remove(name)


@pytest.fixture
def write_noise(tmp_path):
    """A function that writes a sound picture of noise below ``tmp_path`` and returns its path."""

    def write(name, height=48, width=64, seed=0):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        return path

    return write
