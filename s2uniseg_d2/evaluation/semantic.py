"""Pixel accuracy and mIoU after mapping pseudo-classes to classes."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import SemSegEvaluator
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import create_small_table
from numpy.typing import NDArray
from PIL import Image

from s2uniseg_d2.core.assignment import UNMATCHED

from .class_mapping import (
    DEFAULT_STRATEGIES,
    ClassMapping,
    check_mappings,
    check_pseudo_classes,
    check_strategies,
    fit_mappings,
    save_mappings,
)

logger = logging.getLogger(__name__)


class SemanticQuality(NamedTuple):
    """Figures of a confusion matrix in [0, 1]; nan where the truth holds no pixel (of the class).

    Attributes:
        pixel_accuracy: share of the true pixels that are right.
        mean_iou: mean of ``iou`` over the classes that the truth holds.
        mean_accuracy: mean of ``accuracy`` over the same.
        weighted_iou: mean of ``iou`` weighted by the classes' true pixels.
        iou: ``(C,)`` intersection over union.
        accuracy: ``(C,)`` share of the class's pixels that are right.
    """

    pixel_accuracy: float
    mean_iou: float
    mean_accuracy: float
    weighted_iou: float
    iou: NDArray[np.float64]
    accuracy: NDArray[np.float64]


def semantic_quality(confusion: NDArray[np.integer]) -> SemanticQuality:
    """Return the figures of ``(C + 1, C)`` pixels, predicted class by true class, the last row for "no class".

    Pixels without a predicted class are wrong: they lower accuracy and IoU of their true class. Detectron2's and
    U2Seg's evaluators leave them out of the accuracy, which flatters a mapping that leaves clusters out. A class that
    the truth does not hold is in no mean (as in Detectron2; STEGO counts it with 0 where it is predicted).
    """
    right = confusion.diagonal().astype(np.float64)
    true = confusion.sum(axis=0).astype(np.float64)
    union = true + confusion[:-1].sum(axis=1) - right
    held = true > 0
    iou, accuracy = np.full(len(true), np.nan), np.full(len(true), np.nan)
    iou[held], accuracy[held] = right[held] / union[held], right[held] / true[held]
    if not held.any():
        nan = float("nan")
        return SemanticQuality(nan, nan, nan, nan, iou, accuracy)
    return SemanticQuality(
        pixel_accuracy=float(right.sum() / true.sum()),
        mean_iou=float(iou[held].sum() / held.sum()),
        mean_accuracy=float(accuracy[held].sum() / held.sum()),
        weighted_iou=float((iou[held] * (true / true.sum())[held]).sum()),
        iou=iou,
        accuracy=accuracy,
    )


class MappedSemSegEvaluator(SemSegEvaluator):
    """Pixel accuracy and mIoU of ``sem_seg_labels`` after mapping pseudo-classes to classes, by every strategy at once.

    Every pixel with a truth gives its pseudo-class one vote for its class; -1 in the prediction means no pseudo-class
    and is wrong everywhere. Pixels of a pseudo-class without a class are wrong too.

    Results are under ``sem_seg_mapped``: ``PixelAcc_<strategy>``, ``mIoU_<strategy>``, ``fwIoU_<strategy>``,
    ``mACC_<strategy>`` in percent, the classes' ``IoU_<strategy>-<class>`` and ``ACC_<strategy>-<class>``, and
    ``votes_<strategy>-<split>``, which names the split of the fit. With the identity mapping the figures are those of
    the bare ``SemSegEvaluator``. Truth without a single labelled pixel gives nan.
    """

    def __init__(
        self,
        dataset_name: str,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        num_clusters: int,
        strategies: Sequence[str] = DEFAULT_STRATEGIES,
        mappings: Sequence[ClassMapping] | None = None,
    ) -> None:
        """Find the truth of every picture.

        Args:
            dataset_name: a registered data set whose pictures have ``sem_seg_file_name`` and whose metadata has
                ``stuff_classes`` (all semantic classes in the order of the labels) and, unless 255, ``ignore_label``.
            distributed: gather the counts of all processes.
            output_dir: where the mappings are written, if anywhere.
            num_clusters: K, how many pseudo-classes there are.
            strategies: which mappings to fit, on the evaluated split itself.
            mappings: fitted elsewhere, used in place of ``strategies``.

        Raises:
            ValueError: if an argument is out of range or the data set lacks semantic truth.
        """
        metadata = MetadataCatalog.get(dataset_name)
        if not metadata.get("stuff_classes"):
            raise ValueError(f"{dataset_name} has no stuff_classes in its metadata, which semantic evaluation needs")
        if missing := [r["file_name"] for r in DatasetCatalog.get(dataset_name) if "sem_seg_file_name" not in r]:
            raise ValueError(
                f"{dataset_name} has {len(missing)} pictures without sem_seg_file_name, first {missing[0]}"
            )
        if num_clusters < 1:
            raise ValueError(f"num_clusters must be at least 1, got {num_clusters}")
        if metadata.get("ignore_label") is None:
            metadata.ignore_label = 255
        super().__init__(dataset_name, distributed, output_dir, sem_seg_loading_fn=load_label_map)
        self._num_clusters = num_clusters
        self._strategies = check_strategies(strategies)
        self._given = None if mappings is None else check_mappings(mappings, num_clusters, self._num_classes)
        self.mappings: tuple[ClassMapping, ...] = self._given or ()  # those of the last evaluation
        self.reset()

    def reset(self) -> None:
        """Forget all counts."""
        # the last row counts pixels without a pseudo-class, the last column pixels without a truth
        self._counts = np.zeros((self._num_clusters + 1, self._num_classes + 1), dtype=np.int64)

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Count a batch's pixels by pseudo-class and true class.

        Raises:
            ValueError: if a picture is not of the data set, its truth has another size or an unknown label, or a
                pseudo-class is not below ``num_clusters``.
        """
        for entry, output in zip(inputs, outputs, strict=True):
            labels = output["sem_seg_labels"].cpu().numpy()
            check_pseudo_classes(labels, self._num_clusters, lowest=UNMATCHED)
            truth = self._load_truth(entry["file_name"], labels.shape)
            rows = np.where(labels == UNMATCHED, self._num_clusters, labels).ravel()
            pairs = rows * self._counts.shape[1] + truth.ravel()
            self._counts += np.bincount(pairs, minlength=self._counts.size).reshape(self._counts.shape)

    def evaluate(self) -> OrderedDict[str, dict[str, float]] | None:
        """Return the results on the main process, None on others."""
        if self._distributed:
            comm.synchronize()
            gathered = comm.gather(self._counts)
            if not comm.is_main_process():
                return None
            self._counts = np.sum(gathered, axis=0)
        counts = self._counts[:, :-1]
        self.mappings = self._given or fit_mappings(counts[:-1], self._strategies, self._dataset_name)
        if self._output_dir:
            save_mappings(Path(self._output_dir) / "class_mapping_semantic.json", self.mappings, self._class_names)
        results: dict[str, float] = {}
        for mapping in self.mappings:
            results.update(self._figures(mapping, counts))
        shown = {key: value for key, value in results.items() if "-" not in key}
        logger.info("Semantic segmentation on %s:\n%s", self._dataset_name, create_small_table(shown))
        return OrderedDict({"sem_seg_mapped": results})

    def _figures(self, mapping: ClassMapping, counts: NDArray[np.int64]) -> dict[str, float]:
        confusion = np.zeros((self._num_classes + 1, self._num_classes), dtype=np.int64)
        np.add.at(confusion, np.append(mapping.assignment, UNMATCHED), counts)  # row -1 is the last, "no class"
        quality = semantic_quality(confusion)
        figures = {
            f"PixelAcc_{mapping.name}": 100 * quality.pixel_accuracy,
            f"mIoU_{mapping.name}": 100 * quality.mean_iou,
            f"fwIoU_{mapping.name}": 100 * quality.weighted_iou,
            f"mACC_{mapping.name}": 100 * quality.mean_accuracy,
        }
        for name, iou, accuracy in zip(self._class_names, quality.iou, quality.accuracy, strict=True):
            figures[f"IoU_{mapping.name}-{name}"] = 100 * float(iou)
            figures[f"ACC_{mapping.name}-{name}"] = 100 * float(accuracy)
        return figures | mapping.provenance

    def _load_truth(self, file_name: str, shape: tuple[int, ...]) -> NDArray[np.int64]:
        """True labels of a picture, C where there is none."""
        if file_name not in self.input_file_to_gt_file:
            raise ValueError(f"{file_name} is not a picture of {self._dataset_name}: a prediction of another data set")
        path = self.input_file_to_gt_file[file_name]
        truth: NDArray[np.int64] = self.sem_seg_loading_fn(path)
        if truth.shape != shape:
            raise ValueError(f"{path} must have the prediction's size {shape}, got {truth.shape}")
        ignored = truth == self._ignore_label
        wrong = truth[~ignored & ((truth < 0) | (truth >= self._num_classes))]
        if wrong.size:
            raise ValueError(
                f"{path} must hold labels below {self._num_classes} or {self._ignore_label} to ignore, got {wrong[0]}"
            )
        truth[ignored] = self._num_classes
        return truth


def load_label_map(path: str, dtype: type = np.int64) -> NDArray[np.int64]:
    """Return the labels in a one-channel picture; unlike Detectron2's loader it also runs with numpy 2."""
    with PathManager.open(path, "rb") as file:
        return np.asarray(Image.open(file)).astype(dtype)
