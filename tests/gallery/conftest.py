from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from s2uniseg_d2.segmenter import Segmentation
from tests.checkpoint import write_checkpoint
from tests.tiny import write_pictures


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> Path:
    """A tiny checkpoint with its config beside it."""
    return write_checkpoint(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """Three pictures, two of them with one name but for the folder, and one that is none."""
    folder = tmp_path_factory.mktemp("pictures")
    write_pictures(folder / "a", count=2, size=(48, 64))
    write_pictures(folder / "b", count=1, size=(64, 40))
    (folder / "bad.png").write_text("no picture")
    return folder


@pytest.fixture
def found() -> Segmentation:
    """A large mask, a small one inside of it and one elsewhere, on 20 x 30 pixels."""
    masks = torch.zeros(3, 20, 30, dtype=torch.bool)
    masks[0, 5:10, 5:10] = True
    masks[1, 2:18, 2:16] = True
    masks[2, 4:16, 20:28] = True
    instances = Instances((20, 30))
    instances.pred_masks = masks
    instances.pred_boxes = Boxes(torch.tensor([[5.0, 5, 10, 10], [2, 2, 16, 18], [20, 4, 28, 16]]))
    instances.scores = torch.tensor([0.9, 0.8, 0.6])
    instances.pred_classes = torch.tensor([3, 1, 3])
    panoptic = torch.zeros(20, 30, dtype=torch.int32)
    panoptic[masks[1]], panoptic[masks[2]] = 1, 2
    segments = [
        {"id": 1, "isthing": True, "category_id": 1, "score": 0.8, "area": int(masks[1].sum())},
        {"id": 2, "isthing": False, "category_id": 3, "score": 0.6, "area": int(masks[2].sum())},
    ]
    semantic = torch.full((20, 30), -1, dtype=torch.int64)
    semantic[masks[1]], semantic[masks[2]] = 1, 3
    return Segmentation(instances, semantic, panoptic, segments)


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


@pytest.fixture
def browse(tmp_path) -> Callable[..., str]:
    """Opens a page in Chromium and returns its elements once its script has run; a screenshot where one is named."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium on this machine")

    def call(page: Path, fragment: str = "", screenshot: Path | None = None, words: tuple[str, ...] = ()) -> str:
        what = ["--dump-dom"] if screenshot is None else [f"--screenshot={screenshot}"]
        own = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=5000"]
        profile, window = f"--user-data-dir={tmp_path / 'browser'}", "--window-size=1000,800"
        address = f"{page.resolve().as_uri()}#{fragment}"
        command = [browser, *own, profile, window, *words, *what, address]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout

    return call
