"""The smallest real S2-UniSeg, for tests: every part is there, a few thousand weights each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from s2uniseg_d2.config import load_config

OVERRIDES = {
    "MODEL.DEVICE": "cpu",
    "MODEL.VIT.NAME": "vit_tiny_patch16_224",
    "MODEL.VIT.PATCH_SIZE": 8,
    "MODEL.VIT.EMBED_DIM": 48,
    "MODEL.VIT.DEPTH": 4,
    "MODEL.VIT.NUM_HEADS": 4,
    "MODEL.VIT_ADAPTER.CONV_INPLANE": 8,
    "MODEL.VIT_ADAPTER.DEFORM_HEADS": 4,
    "MODEL.VIT_ADAPTER.NORM": "BN",
    "MODEL.VIT_ADAPTER.EXTRA_EXTRACTORS": 1,
    "MODEL.QUERY_HEAD.INS_QUERIES": 6,
    "MODEL.QUERY_HEAD.SEM_QUERIES": 4,
    "MODEL.QUERY_HEAD.HIDDEN_DIM": 32,
    "MODEL.QUERY_HEAD.MASK_DIM": 32,
    "MODEL.QUERY_HEAD.NUM_HEADS": 4,
    "MODEL.QUERY_HEAD.ENCODER_LAYERS": 1,
    "MODEL.QUERY_HEAD.ENCODER_FFN_DIM": 32,
    "MODEL.QUERY_HEAD.DECODER_LAYERS": 2,
    "MODEL.QUERY_HEAD.DECODER_FFN_DIM": 32,
    "MODEL.QUERY_SD.NUM_PROTOTYPES": 16,
    "MODEL.QUERY_SD.HIDDEN_DIM": 32,
    "MODEL.QUERY_SD.BOTTLENECK_DIM": 16,
    "MODEL.LOSS.NUM_POINTS": 64,
    "INPUT.GLOBAL_LONGEST_PX": 96,
    "INPUT.TEST_LONGEST_PX": 96,
    "INPUT.VIEWS.SIZE_PX": 64,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.MAX_ITER": 4,
    "SOLVER.WARMUP_ITERS": 2,
    "SOLVER.AMP.ENABLED": False,
    "DATALOADER.NUM_WORKERS": 0,
    "VIS_PERIOD": 0,
}

# without batch statistics and stochastic depth, so that a batch in parts is the same as the whole
SHARED = {
    "MODEL__VIT__EMBED_DIM": 64,
    "MODEL__VIT__DROP_PATH": 0.0,
    "MODEL__VIT_ADAPTER__CONV_INPLANE": 32,
    "MODEL__VIT_ADAPTER__NORM": "GN",
}


def tiny_words(**more):
    """KEY VALUE words for the command line; keyword names spell dots as double underscores."""
    settings = {**OVERRIDES, **{name.replace("__", "."): value for name, value in more.items()}}
    return [str(word) for pair in settings.items() for word in pair]


def tiny_config(**more):
    return load_config("", tiny_words(**more))


def write_pictures(folder: Path, count: int = 4, size=(96, 64)) -> Path:
    """Pictures of two coloured halves with a disc, each different."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    height, width = size
    y, x = np.mgrid[:height, :width]
    for i in range(count):
        picture = np.empty((height, width, 3), np.uint8)
        picture[:] = generator.integers(0, 256, 3)
        picture[:, width // 2 :] = generator.integers(0, 256, 3)
        picture[(y - height / 2) ** 2 + (x - width / 3) ** 2 < (height / 5) ** 2] = generator.integers(0, 256, 3)
        noise = generator.integers(-8, 9, picture.shape)
        Image.fromarray(np.clip(picture + noise, 0, 255).astype(np.uint8)).save(folder / f"{i}.png")
    return folder


def random_batch(pictures=2, views=2, *, side=96, view_px=64, seed=0):
    """A batch as the mapper gives it."""
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "image": torch.randint(0, 256, (3, side, side - 32 * i), generator=generator, dtype=torch.uint8),
            "views": torch.randint(0, 256, (views, 3, view_px, view_px), generator=generator, dtype=torch.uint8),
            "boxes": torch.tensor([[4.0, 8.0, 44.0, 48.0], [10.0, 2.0, 60.0, 40.0]])[:views],
            "flips": torch.tensor([False, True])[:views],
            "height": 2 * side,
            "width": 2 * (side - 32 * i),
            "file_name": f"{i}.png",
            "image_id": i,
            "draw": i,
        }
        for i in range(pictures)
    ]
