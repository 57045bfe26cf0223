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
from detectron2.utils.logger import create_small_table
from numpy.typing import NDArray

from s2uniseg_d2.core.assignment import UNMATCHED
from s2uniseg_d2.data.center_crop import CenterCrop
from s2uniseg_d2.data.pictures import UnreadablePictureError

from .class_mapping import (
    DEFAULT_STRATEGIES,
    ClassMapping,
    check_mappings,
    check_pseudo_classes,
    check_strategies,
    fit_mappings,
    save_mappings,
    share_mappings,
)
from .png_maps import cause_of, check_names, read_labels, read_map, write_labels

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


VOTES = ("pixels", "masks")
UNLABELLED = 65535  # in the written maps of pseudo-classes and classes


class MappedSemSegEvaluator(SemSegEvaluator):
    """Pixel accuracy and mIoU of ``sem_seg_labels`` after mapping pseudo-classes to classes, by every strategy at once.

    With ``vote`` "pixels", STEGO's confusion matrix, every pixel with a truth gives its pseudo-class one vote for its
    class. With "masks", U2Seg's, all pixels of a picture that share a pseudo-class are one mask, which has one vote for
    every class whose mask in the picture it overlaps with an IoU above ``vote_iou``. -1 in the prediction means no
    pseudo-class and is wrong everywhere; so is a pseudo-class without a class. Without a single vote, and in classes
    that no pseudo-class is mapped to, all is wrong: 0.

    Results are under ``sem_seg_mapped``: ``PixelAcc_<strategy>``, ``mIoU_<strategy>``, ``fwIoU_<strategy>``,
    ``mACC_<strategy>`` in percent, the classes' ``IoU_<strategy>-<class>`` and ``ACC_<strategy>-<class>``, and
    ``votes_<strategy>-<split>``, which names the split of the fit. With the identity mapping the figures are those of
    the bare ``SemSegEvaluator``. Truth without a single labelled pixel gives nan. A picture without a prediction is
    left out, as in Detectron2's, with a warning.

    Differs from U2Seg, whose accuracy leaves out the pixels of pseudo-classes without a class.

    Attributes:
        records: one JSON-able dict per picture that this process has seen; a run that goes on extends them with those
            it had written before. A picture that comes twice counts once, as it came last.
        per_picture: after ``evaluate()``, on the main process, the pixel accuracy in [0, 1] of every picture that has
            truth, under the first strategy, by ``image_id`` (by ``file_name`` where pictures have none).
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
        truth_geometry: CenterCrop | None = None,
        vote: str = "pixels",
        vote_iou: float = 0.15,
        write_maps: bool = False,
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
            truth_geometry: what is done to the truth before it is compared; the pictures must have been cut by the same
                object. COCOStuff-27 (STEGO): ``CenterCrop(320, 320)``. None compares whole pictures.
            vote: "pixels" or "masks".
            vote_iou: see above, in [0, 1); U2Seg's is 0.15. A mask is all of its pixels, with or without a truth.
            write_maps: write ``semantic_pseudo_classes/<picture>.png`` and ``semantic_<strategy>/<picture>.png`` to
                ``output_dir``, 16-bit label maps with 65535 for none.

        Raises:
            ValueError: if an argument is out of range or the data set lacks semantic truth.
        """
        metadata = MetadataCatalog.get(dataset_name)
        if not metadata.get("stuff_classes"):
            raise ValueError(f"{dataset_name} has no stuff_classes in its metadata, which semantic evaluation needs")
        listed = DatasetCatalog.get(dataset_name)
        if missing := [r["file_name"] for r in listed if "sem_seg_file_name" not in r]:
            raise ValueError(
                f"{dataset_name} has {len(missing)} pictures without sem_seg_file_name, first {missing[0]}"
            )
        if num_clusters < 1:
            raise ValueError(f"num_clusters must be at least 1, got {num_clusters}")
        if vote not in VOTES:
            raise ValueError(f"vote must be one of {VOTES}, got {vote!r}")
        if not 0.0 <= vote_iou < 1.0:
            raise ValueError(f"vote_iou must lie in [0, 1), got {vote_iou}")
        if write_maps and (output_dir is None or num_clusters > UNLABELLED):
            raise ValueError(
                f"write_maps needs an output_dir and at most {UNLABELLED} pseudo-classes, "
                f"got {output_dir} and {num_clusters}"
            )
        if metadata.get("ignore_label") is None:
            metadata.ignore_label = 255
        super().__init__(dataset_name, distributed, output_dir, sem_seg_loading_fn=load_label_map)
        self._num_clusters = num_clusters
        self._strategies = check_strategies(strategies)
        self._given = None if mappings is None else check_mappings(mappings, num_clusters, self._class_names)
        self._truth_geometry, self._vote, self._vote_iou = truth_geometry, vote, vote_iou
        self._map_names = check_names([record["file_name"] for record in listed]) if write_maps else {}
        self.mappings: tuple[ClassMapping, ...] = self._given or ()  # those of the last evaluation
        self.per_picture: dict[int | str, float] = {}
        self.reset()

    def reset(self) -> None:
        """Forget all pictures."""
        self.records: list[dict[str, Any]] = []

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Count each picture's pixels by pseudo-class and true class.

        Raises:
            ValueError: if a picture is not of the data set, its truth is missing, has another size or an unknown label,
                or a pseudo-class is not below ``num_clusters``.
        """
        for entry, output in zip(inputs, outputs, strict=True):
            labels = output["sem_seg_labels"].cpu().numpy()
            check_pseudo_classes(labels, self._num_clusters, lowest=UNMATCHED)
            truth = self._load_truth(entry["file_name"], labels.shape)
            # the last row counts pixels without a pseudo-class, the last column pixels without a truth
            rows = np.where(labels == UNMATCHED, self._num_clusters, labels).ravel()
            table = np.bincount(rows * (self._num_classes + 1) + truth.ravel())
            pairs = np.flatnonzero(table)
            name = {"image_id": entry.get("image_id", entry["file_name"]), "file_name": entry["file_name"]}
            self.records.append({**name, "pairs": pairs.tolist(), "pixels": table[pairs].tolist()})
            if self._map_names:
                write_labels(self._map_path("pseudo_classes", entry["file_name"]), labels, UNLABELLED)

    def evaluate(self) -> OrderedDict[str, dict[str, float]] | None:
        """Return the results on the main process, None on others."""
        self.per_picture = {}
        records = self.records
        if self._distributed:
            comm.synchronize()
            gathered = comm.gather(records)
            records = [entry for part in gathered for entry in part]
        results: dict[str, float] | None = None
        if not self._distributed or comm.is_main_process():
            results = self._evaluate_records({entry["file_name"]: entry for entry in records})
        if self._map_names:
            self.mappings = share_mappings(self.mappings, self._distributed)
            self._write_mapped_maps()
        return None if results is None else OrderedDict({"sem_seg_mapped": results})

    def _evaluate_records(self, records: dict[str, dict[str, Any]]) -> dict[str, float]:
        if unknown := records.keys() - self.input_file_to_gt_file.keys():
            raise ValueError(f"{min(unknown)} is not a picture of {self._dataset_name}: a record of another data set")
        if missing := len(self.input_file_to_gt_file) - len(records):
            logger.warning("%d of %d pictures have no prediction", missing, len(self.input_file_to_gt_file))
        shape = (self._num_clusters + 1, self._num_classes + 1)
        counts, votes = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        for entry in records.values():
            table = _table_of(entry, shape)
            counts += table
            votes += table if self._vote == "pixels" else mask_votes(table, self._vote_iou)
        self.mappings = self._given or fit_mappings(
            votes[:-1, :-1], self._strategies, self._dataset_name, self._class_names
        )
        if self._output_dir:
            save_mappings(Path(self._output_dir) / "class_mapping_semantic.json", self.mappings, self._class_names)
        results: dict[str, float] = {}
        for mapping in self.mappings:
            results.update(self._figures(mapping, counts[:, :-1]))
        for _, entry in sorted(records.items()):
            confusion = self._confusion(self.mappings[0], _table_of(entry, shape)[:, :-1])
            if pixels := confusion.sum():
                self.per_picture[entry["image_id"]] = float(confusion.diagonal().sum() / pixels)
        shown = {key: value for key, value in results.items() if "-" not in key}
        logger.info("Semantic segmentation on %s:\n%s", self._dataset_name, create_small_table(shown))
        return results

    def _confusion(self, mapping: ClassMapping, counts: NDArray[np.int64]) -> NDArray[np.int64]:
        confusion = np.zeros((self._num_classes + 1, self._num_classes), dtype=np.int64)
        np.add.at(confusion, np.append(mapping.assignment, UNMATCHED), counts)  # row -1 is the last, "no class"
        return confusion

    def _figures(self, mapping: ClassMapping, counts: NDArray[np.int64]) -> dict[str, float]:
        quality = semantic_quality(self._confusion(mapping, counts))
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
        try:
            truth: NDArray[np.int64] = self.sem_seg_loading_fn(path)
        except UnreadablePictureError as error:
            raise ValueError(f"cannot read the truth {path} of {file_name}: {cause_of(error)}") from error
        if self._truth_geometry is not None:
            truth = self._truth_geometry(truth)
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

    def _map_path(self, kind: str, file_name: str) -> Path:
        return Path(self._output_dir) / f"semantic_{kind}" / self._map_names[file_name]

    def _write_mapped_maps(self) -> None:
        for entry in self.records:
            labels = read_labels(self._map_path("pseudo_classes", entry["file_name"]), UNLABELLED)
            for mapping in self.mappings:
                write_labels(self._map_path(mapping.name, entry["file_name"]), mapping(labels), UNLABELLED)


def mask_votes(table: NDArray[np.int64], vote_iou: float) -> NDArray[np.int64]:
    """Return U2Seg's votes of one picture: 1 where the mask of a row and that of a column have an IoU above a limit.

    Args:
        table: ``(R, C)`` pixels by predicted and true mask; rows and columns for "none" belong to it, since the pixels
            there are part of the masks that they meet.
        vote_iou: the limit.
    """
    union = table.sum(axis=1, keepdims=True) + table.sum(axis=0, keepdims=True) - table
    return (table / np.maximum(union, 1) > vote_iou).astype(np.int64)


def _table_of(record: dict[str, Any], shape: tuple[int, int]) -> NDArray[np.int64]:
    table = np.zeros(shape[0] * shape[1], dtype=np.int64)
    table[record["pairs"]] = record["pixels"]
    return table.reshape(shape)


def load_label_map(path: str, dtype: type = np.int64) -> NDArray[np.int64]:
    """Return the labels in a one-channel picture; unlike Detectron2's loader it also runs with numpy 2."""
    return read_map(path).astype(dtype)
