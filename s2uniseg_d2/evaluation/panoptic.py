"""PQ, SQ and RQ after mapping pseudo-classes to classes, things and stuff apart."""

from __future__ import annotations

import json
import logging
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOPanopticEvaluator
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import create_small_table
from numpy.typing import NDArray

from s2uniseg_d2.data.coco_json import check_inside

from .class_mapping import (
    DEFAULT_STRATEGIES,
    check_mappings,
    check_pseudo_classes,
    check_strategies,
    fit_mappings,
    save_mappings,
    share_mappings,
)
from .panoptic_pictures import (
    KINDS,
    PanopticMapping,
    PanopticPicture,
    Segment,
    add_mask_votes,
    add_pixel_votes,
)
from .png_maps import read_ids, write_ids
from .quality import VOID, Overlaps, PanopticStats, QualitySummary, measure_overlaps, quality_of_overlaps
from .whole_files import write_json

logger = logging.getLogger(__name__)

VOTES = ("pixels", "masks")


class MappedPanopticEvaluator(COCOPanopticEvaluator):
    """PQ, SQ and RQ for all, things and stuff after mapping pseudo-classes to classes, by every strategy in one pass.

    Works without panopticapi, by its rules (:func:`~.quality.panoptic_quality`). Things are matched to thing classes
    only and stuff to stuff classes only, so a pseudo-class may mean one class as a thing and another as stuff. With
    ``vote`` "pixels", CUPS's protocol, every pixel where a predicted thing lies on a true thing is one vote of its
    pseudo-class for that class, the same for stuff; the strategy ``hungarian`` is CUPS's ``one_to_one`` matching and
    ``hungarian_then_majority`` its default. With ``vote`` "masks", near to U2Seg's, a predicted thing has one vote for
    the class of every true thing it overlaps with an IoU above ``thing_iou``, and so have, above ``stuff_iou``, a
    picture's stuff segments of one pseudo-class for its true stuff segments of one class.

    Stuff segments that come to be of one class become one segment, as panoptic truth has them; segments without a class
    become void. The truth is taken as it is: in the 80 + 15 classes of U2Seg's COCO the segments of one supercategory
    stay apart, so a predicted one can match only one of them.

    Results are under ``panoptic_mapped``: ``PQ_<strategy>``, ``SQ_``, ``RQ_`` and the same with ``_th`` and ``_st``
    (``PQ_th_hungarian``) in percent, ``PQ_<strategy>-<class>``, ``SQ_``, ``RQ_`` per class and
    ``votes_<strategy>-<split>``, which names the split of the fit. Classes with TP + FP + FN = 0 are in no mean and
    have no entry. A picture of the truth without a prediction counts as missed, with a warning (panopticapi stops
    there). Truth without a segment, where nothing was predicted, gives nan. Without a single vote all is void and PQ 0.

    ``output_dir`` gets, for every strategy, ``panoptic_<strategy>.json`` and the folder ``panoptic_<strategy>`` of PNG
    files in the truth's format, which panopticapi reads, the same for ``pseudo_classes``, and the mappings.

    The paper is silent on the protocol. Differs from U2Seg: its instance mapping comes from boxes with a score of at
    least 0.6 and an IoU above 0.7 and is taken over from another evaluation; these votes come from the panoptic map.

    Attributes:
        records: one JSON-able dict per picture that this process has seen; a run that goes on extends them with those
            it had written before. A picture that comes twice counts once, as it came last.
        per_picture: after ``evaluate()``, on the main process, the PQ in [0, 1] of every picture, the mean over its
            own classes, under the first strategy, by image id; pictures in which nothing counts are left out.
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
        vote: str = "pixels",
        thing_iou: float = 0.5,
        stuff_iou: float = 0.15,
    ) -> None:
        """Load the truth's list of segments.

        Args:
            dataset_name: a registered data set with ``panoptic_json``, ``panoptic_root`` and Detectron2's two
                ``*_dataset_id_to_contiguous_id``.
            output_dir: where mappings and predictions are written, if anywhere.
            num_clusters: K, how many pseudo-classes there are.
            strategies: which mappings to fit, on the evaluated split itself.
            mappings: fitted elsewhere, used in place of ``strategies``; class numbers count the thing (stuff)
                categories in the order of ``panoptic_json``.
            distributed: gather the counts of all processes.
            vote: "pixels" or "masks".
            thing_iou: see above, in [0, 1).
            stuff_iou: see above, in [0, 1); 0.15 is U2Seg's.

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
        if vote not in VOTES:
            raise ValueError(f"vote must be one of {VOTES}, got {vote!r}")
        for name, limit in (("thing_iou", thing_iou), ("stuff_iou", stuff_iou)):
            if not 0.0 <= limit < 1.0:
                raise ValueError(f"{name} must lie in [0, 1), got {limit}")
        super().__init__(dataset_name, output_dir)
        self._vote, self._limits = vote, (thing_iou, stuff_iou)
        self._dataset_name, self._distributed, self._num_clusters = dataset_name, distributed, num_clusters
        self._strategies = check_strategies(strategies)
        self._read_truth(metadata.panoptic_json)
        self._given = None
        if mappings is not None:
            check_mappings([mapping.things for mapping in mappings], num_clusters, self._names[0])
            check_mappings([mapping.stuff for mapping in mappings], num_clusters, self._names[1])
            self._given = tuple(mappings)
        self.mappings: tuple[PanopticMapping, ...] = self._given or ()  # those of the last evaluation
        self.per_picture: dict[int, float] = {}
        self.reset()

    def _read_truth(self, path: str) -> None:
        try:
            with PathManager.open(path) as file:
                content = json.load(file)
        except (OSError, ValueError) as error:
            raise ValueError(f"cannot read the truth {path} of {self._dataset_name}: {error}") from error
        try:
            self._categories = {category["id"]: category for category in content["categories"]}
            self._truth = {entry["image_id"]: entry for entry in content["annotations"]}
            check_inside(path, [entry["file_name"] for entry in content["annotations"]], "the truth")
            self._thing_ids = [c["id"] for c in content["categories"] if c["isthing"]]
            self._stuff_ids = [c["id"] for c in content["categories"] if not c["isthing"]]
            kinds = (self._thing_ids, self._stuff_ids)
            self._names = tuple(tuple(self._categories[number]["name"] for number in ids) for ids in kinds)
            used = {segment["category_id"] for entry in content["annotations"] for segment in entry["segments_info"]}
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path} is not in COCO's panoptic format: {error!r}") from error
        if unknown := used - self._categories.keys():
            raise ValueError(f"segments of {path} must be of the categories it lists, got category_id {min(unknown)}")
        if len(self._truth) != len(content["annotations"]):
            raise ValueError(
                f"{path} must list each image_id once, got {len(content['annotations'])} annotations of "
                f"{len(self._truth)} pictures"
            )

    def reset(self) -> None:
        """Forget all pictures."""
        self.records: list[dict[str, Any]] = []

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Keep each picture's segments and their overlaps with the truth; the maps themselves are not kept.

        Raises:
            ValueError: if a picture is not of the data set, sizes differ, the list of segments is not the map's, or a
                pseudo-class is not below ``num_clusters``.
        """
        for entry, output in zip(inputs, outputs, strict=True):
            truth_map = self._load_truth_map(entry["image_id"])
            predicted_map, infos = output["panoptic_seg"]
            segments = [Segment(int(info["id"]), bool(info["isthing"]), int(info["category_id"])) for info in infos]
            check_pseudo_classes(np.asarray([s.pseudo_class for s in segments], dtype=np.int64), self._num_clusters)
            ids = predicted_map.cpu().numpy()
            overlaps = measure_overlaps(ids, truth_map)
            listed, drawn = {s.id for s in segments}, set(overlaps.predicted.tolist()) - {VOID}
            if listed != drawn or len(listed) != len(segments):
                raise ValueError(
                    f"panoptic_seg of image_id {entry['image_id']!r} must list each id of its map once, "
                    f"got {sorted(s.id for s in segments)} for a map of {sorted(drawn)}"
                )
            self.records.append(PanopticPicture(entry["image_id"], segments, overlaps).record())
            if self._output_dir:
                write_ids(self._map_path("pseudo_classes", entry["image_id"]), ids)

    def evaluate(self) -> OrderedDict[str, dict[str, float]] | None:
        """Return the results on the main process, None on others."""
        self.per_picture = {}
        records, own = self.records, {entry["image_id"]: PanopticPicture.of(entry) for entry in self.records}
        if self._distributed:
            comm.synchronize()
            gathered = comm.gather(records)
            records = [entry for part in gathered for entry in part]
        results: dict[str, float] | None = None
        if not self._distributed or comm.is_main_process():
            results = self._evaluate_pictures({entry["image_id"]: PanopticPicture.of(entry) for entry in records})
        if self._output_dir:
            self.mappings = share_mappings(self.mappings, self._distributed)
            for picture in own.values():
                self._write_mapped_maps(picture)
        return None if results is None else OrderedDict({"panoptic_mapped": results})

    def _evaluate_pictures(self, pictures: dict[int, PanopticPicture]) -> dict[str, float]:
        if unknown := pictures.keys() - self._truth.keys():
            raise ValueError(f"image_id {min(unknown)!r} is not in the panoptic truth of {self._dataset_name}")
        if missing := len(self._truth.keys() - pictures.keys()):
            logger.warning("%d of %d pictures of the truth have no prediction", missing, len(self._truth))
        self.mappings = self._given or self._fit(pictures.values())
        if self._output_dir:
            self._save(pictures)
        results: dict[str, float] = {}
        for mapping in self.mappings:
            results.update(self._figures(mapping, pictures))
        shown = {key: value for key, value in results.items() if "-" not in key}
        logger.info("Panoptic segmentation on %s:\n%s", self._dataset_name, create_small_table(shown))
        return results

    def count_votes(self, pictures: Iterable[PanopticPicture], *, things: bool) -> NDArray[np.int64]:
        """Return the ``(K, C)`` votes of predicted things for thing classes (or of stuff for stuff classes)."""
        column = {category: c for c, category in enumerate(self._thing_ids if things else self._stuff_ids)}
        counts = np.zeros((self._num_clusters, len(column)), dtype=np.int64)
        for picture in pictures:
            row_of = {s.id: s.pseudo_class for s in picture.segments if s.is_thing == things}
            segments = self._truth[picture.image_id]["segments_info"]
            column_of = {s["id"]: column[s["category_id"]] for s in segments if s["category_id"] in column}
            if self._vote == "pixels":
                add_pixel_votes(counts, picture.overlaps, row_of, column_of)
            else:
                limit = self._limits[0 if things else 1]
                add_mask_votes(counts, picture.overlaps, row_of, column_of, min_iou=limit, whole_classes=not things)
        return counts

    def _fit(self, pictures: Iterable[PanopticPicture]) -> tuple[PanopticMapping, ...]:
        things, stuff = (
            fit_mappings(self.count_votes(pictures, things=kind), self._strategies, self._dataset_name, names)
            for kind, names in zip((True, False), self._names, strict=True)
        )
        return tuple(PanopticMapping(*pair) for pair in zip(things, stuff, strict=True))

    def _figures(self, mapping: PanopticMapping, pictures: dict[int, PanopticPicture]) -> dict[str, float]:
        total = PanopticStats()
        for image_id, truth in self._truth.items():
            picture = pictures.get(image_id, PanopticPicture(image_id, [], _NO_OVERLAPS))
            segments, new_id = picture.map(mapping, self._thing_ids, self._stuff_ids)
            ended = np.asarray([new_id.get(p, p) for p in picture.overlaps.predicted.tolist()], dtype=np.int64)
            overlaps = picture.overlaps._replace(predicted=ended)
            stats = quality_of_overlaps(overlaps, segments, truth["segments_info"], self._categories)
            total.add(stats)
            if mapping is self.mappings[0] and (summary := stats.summary()).categories:
                self.per_picture[image_id] = summary.pq
        name = mapping.things.name
        figures: dict[str, float] = {}
        for suffix, chosen in (("", None), ("_th", self._thing_ids), ("_st", self._stuff_ids)):
            figures.update(_percent(total.summary(chosen), suffix, name))
        for category, counts in sorted(total.counts.items()):
            label = self._categories[category]["name"]
            for key in ("PQ", "SQ", "RQ"):
                figures[f"{key}_{name}-{label}"] = 100 * getattr(counts, key.lower())
        votes = mapping.things.votes + mapping.stuff.votes
        return figures | {f"votes_{name}-{mapping.things.fitted_on}": float(votes)}

    def _load_truth_map(self, image_id: Any) -> NDArray[np.int64]:
        if image_id not in self._truth:
            raise ValueError(
                f"image_id {image_id!r} is not in the panoptic truth of {self._dataset_name}: "
                f"these predictions are of another data set"
            )
        return read_ids(Path(self._metadata.panoptic_root) / self._truth[image_id]["file_name"])

    def _map_name(self, image_id: Any) -> str:
        return str(Path(self._truth[image_id]["file_name"]).with_suffix(".png"))

    def _map_path(self, kind: str, image_id: Any) -> Path:
        return Path(self._output_dir) / f"panoptic_{kind}" / self._map_name(image_id)

    def _write_mapped_maps(self, picture: PanopticPicture) -> None:
        """Paint the picture's id map as every mapping leaves it."""
        ids = read_ids(self._map_path("pseudo_classes", picture.image_id))
        for mapping in self.mappings:
            _, new_id = picture.map(mapping, self._thing_ids, self._stuff_ids)
            before = np.asarray(sorted(new_id))
            after = np.asarray([new_id[i] for i in before.tolist()])
            write_ids(self._map_path(mapping.things.name, picture.image_id), after[np.searchsorted(before, ids)])

    def _save(self, pictures: dict[Any, PanopticPicture]) -> None:
        """Write the mappings and, in the truth's format, the lists of segments that go with the maps."""
        folder = Path(self._output_dir)
        for kind, names in zip(KINDS, self._names, strict=True):
            mappings = [getattr(mapping, kind) for mapping in self.mappings]
            save_mappings(folder / f"class_mapping_panoptic_{kind}.json", mappings, names)
        listed: dict[str, list[dict[str, Any]]] = {"pseudo_classes": []}
        for picture in (pictures[image_id] for image_id in self._truth if image_id in pictures):
            areas = picture.areas()
            entry = {"image_id": picture.image_id, "file_name": self._map_name(picture.image_id)}
            plain = [
                {"id": s.id, "category_id": s.pseudo_class, "isthing": int(s.is_thing), "area": areas[s.id]}
                for s in picture.segments
            ]
            listed["pseudo_classes"].append({**entry, "segments_info": plain})
            for mapping in self.mappings:
                segments, new_id = picture.map(mapping, self._thing_ids, self._stuff_ids)
                merged: dict[int, int] = {}
                for old, new in new_id.items():
                    merged[new] = merged.get(new, 0) + areas[old]
                infos = [{**segment, "area": merged[segment["id"]], "iscrowd": 0} for segment in segments]
                listed.setdefault(mapping.things.name, []).append({**entry, "segments_info": infos})
        categories = list(self._categories.values())
        for name, entries in listed.items():
            content: dict[str, Any] = {"annotations": entries}
            if name != "pseudo_classes":
                content["categories"] = categories
            write_json(folder / f"panoptic_{name}.json", content)


_NO_OVERLAPS = Overlaps(*(np.zeros(0, dtype=np.int64) for _ in range(3)))


def _percent(summary: QualitySummary, suffix: str, strategy: str) -> dict[str, float]:
    return {f"{key}{suffix}_{strategy}": 100 * getattr(summary, key.lower()) for key in ("PQ", "SQ", "RQ")}
