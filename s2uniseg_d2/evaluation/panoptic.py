"""PQ, SQ and RQ after mapping pseudo-classes to classes, things and stuff apart."""

from __future__ import annotations

import json
import logging
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOPanopticEvaluator
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import create_small_table
from numpy.typing import NDArray
from PIL import Image

from .class_mapping import (
    DEFAULT_STRATEGIES,
    ClassMapping,
    check_mappings,
    check_pseudo_classes,
    check_strategies,
    fit_mappings,
    save_mappings,
)
from .quality import VOID, Overlaps, PanopticStats, QualitySummary, measure_overlaps, quality_of_overlaps

logger = logging.getLogger(__name__)


class PanopticMapping(NamedTuple):
    """One strategy's mappings of thing pseudo-classes to thing classes and of stuff pseudo-classes to stuff classes."""

    things: ClassMapping
    stuff: ClassMapping


class _Segment(NamedTuple):
    id: int
    is_thing: bool
    pseudo_class: int


class _Picture(NamedTuple):
    """All that PQ needs of one predicted picture, whatever the mapping will be."""

    image_id: int
    segments: list[_Segment]
    overlaps: Overlaps


class MappedPanopticEvaluator(COCOPanopticEvaluator):
    """PQ, SQ and RQ for all, things and stuff after mapping pseudo-classes to classes, by every strategy in one pass.

    Works without panopticapi, by its rules (:func:`~.quality.panoptic_quality`). CUPS's protocol: every pixel where a
    predicted thing lies on a true thing is one vote of its pseudo-class for that class, the same for stuff; things are
    matched to thing classes only and stuff to stuff classes only, so a pseudo-class may mean one class as a thing and
    another as stuff. Stuff segments that come to be of one class become one segment, as panoptic truth has them;
    segments without a class become void.

    Results are under ``panoptic_mapped``: ``PQ_<strategy>``, ``SQ_``, ``RQ_`` and the same with ``_th`` and ``_st``
    (``PQ_th_hungarian``) in percent, ``PQ_<strategy>-<class>`` per class and ``votes_<strategy>-<split>``, which names
    the split of the fit. A picture of the truth without a prediction counts as missed, with a warning (panopticapi
    stops there). Truth without a segment, where nothing was predicted, gives nan.

    The paper is silent on the protocol. U2Seg takes over its instance and semantic mappings, which need thresholds of
    their own; CUPS's is the only one that is spelled out for panoptic maps. Differs from CUPS: one-to-one and
    many-to-one are two results here; there the second completes the first.
    """

    def __init__(
        self,
        dataset_name: str,
        output_dir: str | None = None,
        *,
        num_clusters: int,
        strategies: Sequence[str] = DEFAULT_STRATEGIES,
        mappings: Sequence[PanopticMapping] | None = None,
        distributed: bool = True,
    ) -> None:
        """Load the truth's list of segments.

        Args:
            dataset_name: a registered data set with ``panoptic_json``, ``panoptic_root`` and Detectron2's two
                ``*_dataset_id_to_contiguous_id``.
            output_dir: where the mappings are written, if anywhere.
            num_clusters: K, how many pseudo-classes there are.
            strategies: which mappings to fit, on the evaluated split itself.
            mappings: fitted elsewhere, used in place of ``strategies``; class numbers count the thing (stuff)
                categories in the order of ``panoptic_json``.
            distributed: gather the counts of all processes.

        Raises:
            ValueError: if an argument is out of range or the data set lacks panoptic truth.
        """
        metadata = MetadataCatalog.get(dataset_name)
        for key in (
            "panoptic_json",
            "panoptic_root",
            "thing_dataset_id_to_contiguous_id",
            "stuff_dataset_id_to_contiguous_id",
        ):
            if metadata.get(key) is None:
                raise ValueError(f"{dataset_name} has no {key} in its metadata, which panoptic evaluation needs")
        if num_clusters < 1:
            raise ValueError(f"num_clusters must be at least 1, got {num_clusters}")
        super().__init__(dataset_name, output_dir)
        self._dataset_name, self._distributed, self._num_clusters = dataset_name, distributed, num_clusters
        self._strategies = check_strategies(strategies)
        with PathManager.open(metadata.panoptic_json) as file:
            content = json.load(file)
        try:
            self._categories = {category["id"]: category for category in content["categories"]}
            self._truth = {entry["image_id"]: entry for entry in content["annotations"]}
            self._thing_ids = [c["id"] for c in content["categories"] if c["isthing"]]
            self._stuff_ids = [c["id"] for c in content["categories"] if not c["isthing"]]
        except (KeyError, TypeError) as error:
            raise ValueError(f"{metadata.panoptic_json} is not in COCO's panoptic format: {error!r}") from error
        self._given = None
        if mappings is not None:
            check_mappings([mapping.things for mapping in mappings], num_clusters, len(self._thing_ids))
            check_mappings([mapping.stuff for mapping in mappings], num_clusters, len(self._stuff_ids))
            self._given = tuple(mappings)
        self.mappings: tuple[PanopticMapping, ...] = self._given or ()  # those of the last evaluation
        self.reset()

    def reset(self) -> None:
        """Forget all pictures."""
        self._pictures: list[_Picture] = []

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Keep each picture's segments and their overlaps with the truth; the maps themselves are not kept.

        Raises:
            ValueError: if a picture is not of the data set, sizes differ, the list of segments is not the map's, or a
                pseudo-class is not below ``num_clusters``.
        """
        for entry, output in zip(inputs, outputs, strict=True):
            truth_map = self._load_truth_map(entry["image_id"])
            predicted_map, infos = output["panoptic_seg"]
            segments = [_Segment(int(info["id"]), bool(info["isthing"]), int(info["category_id"])) for info in infos]
            check_pseudo_classes(np.asarray([s.pseudo_class for s in segments], dtype=np.int64), self._num_clusters)
            overlaps = measure_overlaps(predicted_map.cpu().numpy(), truth_map)
            listed, drawn = {s.id for s in segments}, set(overlaps.predicted.tolist()) - {VOID}
            if listed != drawn or len(listed) != len(segments):
                raise ValueError(
                    f"panoptic_seg of image_id {entry['image_id']!r} must list each id of its map once, "
                    f"got {sorted(s.id for s in segments)} for a map of {sorted(drawn)}"
                )
            self._pictures.append(_Picture(entry["image_id"], segments, overlaps))

    def evaluate(self) -> OrderedDict[str, dict[str, float]] | None:
        """Return the results on the main process, None on others."""
        if self._distributed:
            comm.synchronize()
            gathered = comm.gather(self._pictures)
            if not comm.is_main_process():
                return None
            self._pictures = [picture for pictures in gathered for picture in pictures]
        pictures = {picture.image_id: picture for picture in self._pictures}
        if missing := len(self._truth.keys() - pictures.keys()):
            logger.warning("%d of %d pictures of the truth have no prediction", missing, len(self._truth))
        self.mappings = self._given or self._fit(pictures.values())
        if self._output_dir:
            self._save()
        results: dict[str, float] = {}
        for mapping in self.mappings:
            results.update(self._figures(mapping, pictures))
        shown = {key: value for key, value in results.items() if "-" not in key}
        logger.info("Panoptic segmentation on %s:\n%s", self._dataset_name, create_small_table(shown))
        return OrderedDict({"panoptic_mapped": results})

    def count_votes(self, pictures: Iterable[_Picture], *, things: bool) -> NDArray[np.int64]:
        """Return the ``(K, C)`` pixels that predicted things (or stuff) share with true things (or stuff)."""
        column = {category: c for c, category in enumerate(self._thing_ids if things else self._stuff_ids)}
        counts = np.zeros((self._num_clusters, len(column)), dtype=np.int64)
        for picture in pictures:
            row_of = {s.id: s.pseudo_class for s in picture.segments if s.is_thing == things}
            segments = self._truth[picture.image_id]["segments_info"]
            column_of = {s["id"]: column[s["category_id"]] for s in segments if s["category_id"] in column}
            for t, p, pixels in zip(*(ids.tolist() for ids in picture.overlaps), strict=True):
                if t in column_of and p in row_of:
                    counts[row_of[p], column_of[t]] += pixels
        return counts

    def _fit(self, pictures: Iterable[_Picture]) -> tuple[PanopticMapping, ...]:
        things, stuff = (
            fit_mappings(self.count_votes(pictures, things=kind), self._strategies, self._dataset_name)
            for kind in (True, False)
        )
        return tuple(PanopticMapping(*pair) for pair in zip(things, stuff, strict=True))

    def _figures(self, mapping: PanopticMapping, pictures: dict[int, _Picture]) -> dict[str, float]:
        total = PanopticStats()
        for image_id, truth in self._truth.items():
            picture = pictures.get(image_id, _Picture(image_id, [], _NO_OVERLAPS))
            segments, overlaps = self._apply(mapping, picture)
            total.add(quality_of_overlaps(overlaps, segments, truth["segments_info"], self._categories))
        name = mapping.things.name
        figures: dict[str, float] = {}
        for suffix, chosen in (("", None), ("_th", self._thing_ids), ("_st", self._stuff_ids)):
            figures.update(_percent(total.summary(chosen), suffix, name))
        for category, counts in sorted(total.counts.items()):
            figures[f"PQ_{name}-{self._categories[category]['name']}"] = 100 * counts.pq
        votes = mapping.things.votes + mapping.stuff.votes
        return figures | {f"votes_{name}-{mapping.things.fitted_on}": float(votes)}

    def _apply(self, mapping: PanopticMapping, picture: _Picture) -> tuple[list[dict[str, Any]], Overlaps]:
        """Segments with the data set's category ids, and the overlaps with the ids they end up with."""
        new_id = {VOID: VOID}
        segments: list[dict[str, Any]] = []
        stuff_of: dict[int, int] = {}  # the segment that stands for a stuff category
        for segment in picture.segments:
            kind, ids = (mapping.things, self._thing_ids) if segment.is_thing else (mapping.stuff, self._stuff_ids)
            label = int(kind.assignment[segment.pseudo_class])
            if label < 0:
                new_id[segment.id] = VOID
                continue
            category = ids[label]
            if not segment.is_thing and category in stuff_of:
                new_id[segment.id] = stuff_of[category]
                continue
            new_id[segment.id] = segment.id
            segments.append({"id": segment.id, "category_id": category})
            if not segment.is_thing:
                stuff_of[category] = segment.id
        predicted = [new_id.get(p, p) for p in picture.overlaps.predicted.tolist()]
        return segments, picture.overlaps._replace(predicted=np.asarray(predicted, dtype=np.int64))

    def _load_truth_map(self, image_id: int) -> NDArray[np.int64]:
        if image_id not in self._truth:
            raise ValueError(
                f"image_id {image_id!r} is not in the panoptic truth of {self._dataset_name}: "
                f"these predictions are of another data set"
            )
        path = str(Path(self._metadata.panoptic_root) / self._truth[image_id]["file_name"])
        with PathManager.open(path, "rb") as file:
            colours = np.asarray(Image.open(file).convert("RGB"), dtype=np.int64)
        return colours @ np.asarray([1, 256, 256 * 256])

    def _save(self) -> None:
        for kind, ids in (("things", self._thing_ids), ("stuff", self._stuff_ids)):
            names = [self._categories[category]["name"] for category in ids]
            path = Path(self._output_dir) / f"class_mapping_panoptic_{kind}.json"
            save_mappings(path, [getattr(mapping, kind) for mapping in self.mappings], names)


_NO_OVERLAPS = Overlaps(*(np.zeros(0, dtype=np.int64) for _ in range(3)))


def _percent(summary: QualitySummary, suffix: str, strategy: str) -> dict[str, float]:
    return {f"{key}{suffix}_{strategy}": 100 * getattr(summary, key.lower()) for key in ("PQ", "SQ", "RQ")}
