"""What the tests of an evaluation's run share: tiny weights, generated scenes and the command in this process."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch
from detectron2.modeling import build_model

import s2uniseg_d2.modeling  # noqa: F401  (registers)
import train_net
from tests.tiny import tiny_config

SIZE = 64
FOREIGN_WARNINGS = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # pycocotools
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),  # Detectron2 leaves the config file open
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),  # ... until it is collected
]


def make_scenes(repository, output, count):
    spec = importlib.util.spec_from_file_location("make_scenes", repository / "datasets" / "make_scenes.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.main(["--output", str(output), "--train", "1", "--val", str(count), "--size", str(SIZE)]) == 0
    return output / "val"


def save_run(folder, *, seed=0, **more):
    """A training run's folder with random tiny weights and the config that describes them."""
    folder.mkdir(parents=True)
    cfg = tiny_config(**more)
    torch.manual_seed(seed)
    torch.save({"model": build_model(cfg).state_dict()}, folder / "model_final.pth")
    (folder / "config.yaml").write_text(cfg.dump())
    return folder / "model_final.pth"


def words(config, weights, scenes, output, **more):
    settings = {
        "MODEL.DEVICE": "cpu",
        "MODEL.WEIGHTS": weights,
        "DATASETS.TEST": f"('scenes:{scenes}',)",
        "OUTPUT_DIR": output,
        "INPUT.TEST_LONGEST_PX": SIZE,
        "DATALOADER.NUM_WORKERS": 0,
        "TEST.PICTURES": 0,
        "TEST.CASES": 0,
        "EVALUATION.PART_PICTURES": 1,
        **{name.replace("__", "."): value for name, value in more.items()},
    }
    overrides = [str(word) for pair in settings.items() for word in pair]
    return ["--eval-only", "--config-file", str(config), *overrides]


def evaluate(*arguments, flags=(), **more):
    return train_net.main([*flags, *words(*arguments, **more)])


def read(output, name="results.json"):
    return json.loads((output / name).read_text())
