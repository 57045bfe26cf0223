"""One evaluation from checked data to tables: predictions, figures, records, pictures of cases."""

from __future__ import annotations

import logging
import statistics
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.samplers import InferenceSampler
from detectron2.evaluation import DatasetEvaluator, inference_context
from detectron2.utils import comm
from detectron2.utils.logger import log_every_n_seconds
from torch import nn

from s2uniseg_d2.data import build_test_loader, resolve_dataset
from s2uniseg_d2.data.center_crop import CenterCrop
from s2uniseg_d2.data.loaders import check_test_files, load_test_records
from s2uniseg_d2.evaluation.build import (
    build_evaluators,
    choose_tasks,
    crop_for,
    evaluator_settings,
    require_truth,
)
from s2uniseg_d2.evaluation.published import check_protocol
from s2uniseg_d2.evaluation.whole_files import remove_partials

from .comparison import picture_name
from .evaluation_cases import draw_cases
from .evaluation_parts import PARTS, EvaluationParts, KeptPicture
from .evaluation_record import data_digest, settings_of, weights_record
from .evaluation_report import report
from .prediction import Predictor

logger = logging.getLogger(__name__)

Records = list[dict[str, Any]]


class SetResult(NamedTuple):
    """What came out of one data set, on the main process.

    Attributes:
        figures: by group of results, such as ``segm_agnostic``.
        per_picture: by task, a score in [0, 1] of every picture, by its ``image_id`` or file name.
        seconds: of every picture's prediction.
        pictures: how many the data set lists.
        kept: how many of them were taken from a stopped run.
    """

    figures: dict[str, dict[str, float]]
    per_picture: dict[str, dict[Any, float]]
    seconds: list[float]
    pictures: int
    kept: int

    @property
    def seconds_per_picture(self) -> float:
        """The median, which the first pictures' warm-up does not move; nan without pictures."""
        return statistics.median(self.seconds) if self.seconds else float("nan")


def _truth_files(name: str) -> list[str]:
    metadata = MetadataCatalog.get(name)
    return [path for path in (metadata.get("json_file"), metadata.get("panoptic_json")) if path]


def evaluate(cfg: CfgNode, model: nn.Module, *, resume: bool = False) -> OrderedDict[str, Any]:
    """Evaluate a model on every data set of ``DATASETS.TEST`` and write all of it to ``OUTPUT_DIR``.

    Before the first prediction: names, truths, pictures and label maps are looked for on disk. With
    ``TEST.MAPPING_SPLIT`` the mappings are fitted on that data set first. ``OUTPUT_DIR`` gets ``results.json``,
    ``per_picture.json``, ``tables.md``, a line of ``metrics.json``, the evaluators' predictions in ``inference`` and
    pictures of cases in ``cases``. While it runs, ``parts`` holds finished pictures.

    All processes call this together; each predicts its share of the pictures.

    Args:
        cfg: reads ``TEST``, ``EVALUATION``, ``DATASETS.TEST``, ``INPUT.TEST_LONGEST_PX``, ``OUTPUT_DIR``, ``MODEL``.
        model: an S2UniSeg with its weights; its mode is restored.
        resume: go on with the pictures that a stopped run kept.

    Returns:
        On the main process the figures, by data set where there are several; empty on others.

    Raises:
        ValueError: for data without the truth that a protocol needs, missing files, or kept pictures that cannot be
            gone on with.
    """
    records = _check_data(cfg)
    weights = weights_record(cfg, model)
    digests = {f"pictures of {name}": data_digest(listed, _truth_files(name)) for name, listed in records.items()}
    identity = {**settings_of(cfg), "weights": weights["sha256"], **digests}
    if comm.is_main_process():
        remove_partials(Path(cfg.OUTPUT_DIR))
    parts = EvaluationParts(Path(cfg.OUTPUT_DIR) / PARTS, identity, cfg.EVALUATION.PART_PICTURES)
    parts.open(resume=resume)
    mappings = _fit_elsewhere(cfg, model, records, parts)
    names = [resolve_dataset(name) for name in cfg.DATASETS.TEST]
    results: dict[str, SetResult] = {}
    for name in names:
        _, results[name] = _evaluate_set(cfg, model, name, records[name], parts, picture_name(name), mappings=mappings)
    figures = OrderedDict((name, results[name].figures) for name in names)
    if comm.is_main_process():
        report(cfg, results, identity, weights)
        for name in names:
            draw_cases(cfg, model, name, records[name], results[name].per_picture)
    comm.synchronize()
    if comm.is_main_process() and not cfg.EVALUATION.KEEP_PARTS:
        parts.remove()
    if not comm.is_main_process():
        return OrderedDict()
    return figures if len(names) > 1 else OrderedDict(figures[names[0]])


def _check_data(cfg: CfgNode) -> dict[str, Records]:
    """Names and ids of all pictures by data set, once truth and files are known to be there."""
    check_protocol(cfg.EVALUATION.PROTOCOL)
    names = [resolve_dataset(name) for name in cfg.DATASETS.TEST]
    split = [resolve_dataset(cfg.TEST.MAPPING_SPLIT)] if cfg.TEST.MAPPING_SPLIT else []
    if len(set(names)) != len(names):
        raise ValueError(f"DATASETS.TEST must name each data set once, got {tuple(cfg.DATASETS.TEST)}")
    if cfg.EVALUATION.PROTOCOL:
        require_truth(names, cfg.TEST.TASKS)
    records: dict[str, Records] = {}
    for name in dict.fromkeys([*split, *names]):
        listed = load_test_records(name)
        check_test_files(name, listed)
        # without the annotations, which may take gigabytes
        records[name] = [{key: record[key] for key in ("file_name", "image_id") if key in record} for record in listed]
    return records


def _fit_elsewhere(
    cfg: CfgNode, model: nn.Module, records: Mapping[str, Records], parts: EvaluationParts
) -> dict[str, Any]:
    """Mappings by task, fitted on ``TEST.MAPPING_SPLIT``; nothing where each test set fits its own."""
    if not cfg.TEST.MAPPING_SPLIT:
        return {}
    name = resolve_dataset(cfg.TEST.MAPPING_SPLIT)
    mapped = [task for task in cfg.TEST.TASKS if task != "agnostic"]
    logger.info("Mappings of pseudo-classes are fitted on %s", name)
    folder = f"{picture_name(name)}-mapping"
    evaluators, _ = _evaluate_set(cfg, model, name, records[name], parts, folder, tasks=mapped)
    fitted = {task: evaluator.mappings for task, evaluator in evaluators.items()}
    if missing := [task for task in mapped if task not in fitted]:
        raise ValueError(f"TEST.MAPPING_SPLIT {name} has no truth to fit the mappings of {missing} on")
    return dict(comm.all_gather(fitted)[0])


def _evaluate_set(
    cfg: CfgNode,
    model: nn.Module,
    name: str,
    records: Records,
    parts: EvaluationParts,
    folder: str,
    *,
    tasks: Sequence[str] | None = None,
    mappings: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], SetResult]:
    settings = evaluator_settings(cfg) | ({} if tasks is None else {"tasks": tasks})
    chosen = choose_tasks(name, settings["tasks"])
    output_dir = str(Path(cfg.OUTPUT_DIR) / "inference" / folder)
    evaluators = build_evaluators(name, output_dir=output_dir, mappings=mappings, write_maps=True, **settings)
    done: dict[int, KeptPicture] = {}
    kept = 0
    if evaluators:
        crop = crop_for(chosen, settings["crop"])
        done, kept = _predict_set(cfg, model, name, len(records), evaluators, crop, parts, folder)
    figures: dict[str, dict[str, float]] = {}
    for task, evaluator in evaluators.items():
        evaluator.reset()
        evaluator.records.extend(picture.records[task] for _, picture in sorted(done.items()))
        figures.update(evaluator.evaluate() or {})
    shares = comm.gather(([picture.seconds for picture in done.values()], kept))
    return evaluators, SetResult(
        figures=figures,
        per_picture={task: dict(evaluator.per_picture) for task, evaluator in evaluators.items()}
        if comm.is_main_process()
        else {},
        seconds=[value for seconds, _ in shares for value in seconds],
        pictures=len(records),
        kept=sum(count for _, count in shares),
    )


def _predict_set(
    cfg: CfgNode,
    model: nn.Module,
    name: str,
    count: int,
    evaluators: Mapping[str, DatasetEvaluator],
    crop: CenterCrop | None,
    parts: EvaluationParts,
    folder: str,
) -> tuple[dict[int, KeptPicture], int]:
    """This process's share of a data set, by place, and how many of it were kept from a stopped run."""
    part = parts.part(folder)
    share = list(InferenceSampler(count))
    kept = part.load()
    done = {place: kept[place] for place in share if place in kept}
    left = [place for place in share if place not in done]
    logger.info("%s: %d of %d pictures to predict here, %d kept", name, len(left), count, len(done))
    semantic = "semantic" in evaluators
    predict = Predictor(model, flip=cfg.TEST.FLIP and semantic, crf=cfg.TEST.CRF and semantic)
    loader = build_test_loader(cfg, name, indices=left, crop=crop)
    for evaluator in evaluators.values():
        evaluator.reset()
    fresh = 0
    try:
        with inference_context(model), torch.no_grad():
            for place, picture in zip(left, _predictions(predict, loader, evaluators), strict=True):
                done[place] = picture
                part.add(place, picture)
                fresh += 1
                log_every_n_seconds(
                    logging.INFO,
                    f"{name}: {fresh} of {len(left)}, {picture.seconds:.3f} s the last",
                    n=10,
                    name=__name__,
                )
    finally:
        part.flush()  # also of a run that stops here
    return done, len(share) - len(left)


def _predictions(predict: Predictor, loader: Any, evaluators: Mapping[str, DatasetEvaluator]) -> Iterator[KeptPicture]:
    for batch in loader:
        start = time.perf_counter()
        outputs = predict(batch)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        for evaluator in evaluators.values():
            evaluator.process(batch, outputs)
        yield KeptPicture(seconds, {task: evaluator.records[-1] for task, evaluator in evaluators.items()})
