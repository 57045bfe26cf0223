"""Pictures of the best, the median and the worst cases of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from torch import nn

from s2uniseg_d2.data import build_test_loader
from s2uniseg_d2.evaluation.build import choose_tasks, crop_for, evaluator_settings

from .comparison import comparison_rows, picture_name
from .panel import ComparisonRow, draw_comparison, write_png
from .prediction import Predictor


def choose_cases(scores: Mapping[Any, float], count: int) -> dict[str, list[Any]]:
    """Return the keys of ``count`` pictures each with the best, the median and the worst scores.

    Best come best first, worst come worst first; ties go by the order of the keys given. With fewer than three times
    ``count`` pictures a picture may be in two lists; with fewer than ``count`` the lists are shorter.

    Raises:
        ValueError: if ``count`` is below 1.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    ascending = sorted(scores, key=scores.__getitem__)
    middle = max(0, (len(ascending) - count) // 2)
    return {
        "best": sorted(scores, key=lambda key: -scores[key])[:count],
        "median": ascending[middle : middle + count],
        "worst": ascending[:count],
    }


def draw_cases(
    cfg: CfgNode,
    model: nn.Module,
    name: str,
    records: list[dict[str, Any]],
    per_picture: Mapping[str, Mapping[Any, float]],
) -> None:
    """Write ``cases/<data set>/<task>_<best, median or worst>.png``, predicted once more, beside their truth.

    Args:
        cfg: reads ``OUTPUT_DIR``, ``TEST`` and what loaders read.
        model: an S2UniSeg.
        name: of the data set.
        records: all of it, in order; names and ids alone are read.
        per_picture: by task, scores by ``image_id`` or file name.
    """
    if not cfg.TEST.CASES or not any(per_picture.values()):
        return
    place_of = {
        record[key]: i for i, record in enumerate(records) for key in ("image_id", "file_name") if key in record
    }
    chosen = {task: choose_cases(scores, cfg.TEST.CASES) for task, scores in per_picture.items()}
    places = sorted({place_of[key] for groups in chosen.values() for keys in groups.values() for key in keys})
    settings = evaluator_settings(cfg)
    crop = crop_for(choose_tasks(name, settings["tasks"]), settings["crop"])
    semantic = "semantic" in per_picture
    rows: list[ComparisonRow] = comparison_rows(
        model,
        name,
        build_test_loader(cfg, name, indices=places, crop=crop),
        None,
        len(places),
        predict=Predictor(model, flip=cfg.TEST.FLIP and semantic, crf=cfg.TEST.CRF and semantic),
        crop=crop,
    )
    row_of = dict(zip(places, rows, strict=True))
    folder = Path(cfg.OUTPUT_DIR) / "cases" / picture_name(name)
    for task, groups in chosen.items():
        for group, keys in groups.items():
            if keys:
                write_png(folder / f"{task}_{group}.png", draw_comparison([row_of[place_of[key]] for key in keys]))
