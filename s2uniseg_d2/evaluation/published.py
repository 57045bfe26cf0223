"""Published figures that stand beside ours, each with where it was read.

Nothing here was measured by this project. A row of the paper is its authors' claim until someone repeats it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

# protocol -> the data sets that its published figures may stand beside
PROTOCOLS: dict[str, tuple[str, ...]] = {
    "coco_agnostic": ("coco_2017_val_agnostic", "coco_2017_val"),
    "coco_instance": ("coco_2017_val",),
    "uvo": ("uvo_sparse_val_agnostic", "uvo_dense_val", "uvo_dense_val_other_ignored", "uvo_dense_val_other_class"),
    "cocostuff27": ("cocostuff27_val",),
    "coco_panoptic": ("coco_2017_val_panoptic_95",),
    "cityscapes": ("cityscapes_val_panoptic_19", "cityscapes_val_panoptic_27"),
    "pseudo_masks": ("coco_2017_val_agnostic", "coco_2017_val", "cocostuff27_val"),
}

_PAPER = "S2-UniSeg paper, Table 2"
_PAPER_TIMES = "S2-UniSeg paper, Table 1"
_NO_LIMIT = "limit on detections not stated"
_CUTLER_README = "CutLER README (facebookresearch/CutLER)"
_UNVERIFIED = "CutLER publishes box figures only: which mask AP and which AR these are is unverified"
_LEADERBOARD = "leaderboard sotaverified.org/papers"
_NOT_IN_U2SEG = "U2Seg's code has no class-agnostic evaluation"


class PublishedRow(NamedTuple):
    """Figures of one method on one protocol.

    Attributes:
        method: and its variant.
        trained_on: data of the pre-training.
        protocol: one of :data:`PROTOCOLS`.
        group: key of the results that it stands beside, such as ``segm_agnostic``.
        figures: metric -> value in percent (``s/picture`` in seconds), by the names of our results without a strategy.
        source: where it was read.
        note: what keeps it from being comparable, if anything is known.
    """

    method: str
    trained_on: str
    protocol: str
    group: str
    figures: Mapping[str, float]
    source: str
    note: str = ""

    @property
    def is_claim(self) -> bool:
        """Whether the S2-UniSeg paper says this of its own method."""
        return self.method.startswith(("S2-UniSeg", "UniAP"))


# method, data, then Table 2's columns from left to right; None is a dash of the table
_TABLE_2: tuple[tuple[str, str, tuple[float | None, ...]], ...] = (
    ("STEGO", "COCOStuff", (None,) * 6 + (56.9, 28.2) + (None,) * 6),
    ("CutLER", "ImageNet", (9.7, 27.1) + (None,) * 12),
    ("U2Seg", "ImageNet", (7.3, 19.2, 6.4, 18.5, 6.2, 21.0, 63.9, 30.2, 16.1, 71.1, 19.9, 17.6, 52.7, 21.7)),
    ("S2-UniSeg", "ImageNet", (14.2, 34.3, 15.3, 35.5, 16.2, 32.1, 68.4, 36.1, 20.2, 80.6, 26.7, 20.5, 60.1, 29.7)),
    ("UnSAM", "SA-1B 0.4M", (31.4, 42.0) + (None,) * 12),
    ("S2-UniSeg", "SA-1B 0.4M", (33.6, 43.9, 27.4, 36.1, 20.8, 34.6, 72.3, 37.2, 25.7, 88.4, 28.6, 22.5, 63.7, 32.6)),
    ("S2-UniSeg", "SA-1B 1.2M", (35.1, 44.6, 29.1, 38.4, 22.6, 35.7, 74.4, 38.9, 28.3, 89.2, 29.3, 23.6, 64.3, 33.4)),
    ("S2-UniSeg", "SA-1B 2.0M", (36.4, 46.3, 30.7, 40.3, 24.3, 36.4, 76.8, 39.7, 29.6, 90.3, 30.2, 25.4, 66.7, 35.2)),
)
# protocol, group of results, metrics: in the order of the columns
_COLUMNS_2: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("coco_agnostic", "segm_agnostic", ("AP", "AR@100")),
    ("coco_instance", "segm_mapped", ("AP", "AR@100")),
    ("uvo", "segm_mapped", ("AP", "AR@100")),
    ("cocostuff27", "sem_seg_mapped", ("PixelAcc", "mIoU")),
    ("coco_panoptic", "panoptic_mapped", ("PQ", "SQ", "RQ")),
    ("cityscapes", "panoptic_mapped", ("PQ", "SQ", "RQ")),
)
_NOTES_2: dict[tuple[str, str], str] = {
    ("CutLER", "coco_agnostic"): _UNVERIFIED,
    ("U2Seg", "coco_agnostic"): _NOT_IN_U2SEG,
    ("U2Seg", "coco_instance"): "many-to-one mapping fitted on val2017; U2Seg's code measures box AP only",
    ("U2Seg", "uvo"): "no UVO in U2Seg's code; which UVO file is not stated",
    ("U2Seg", "cocostuff27"): "U2Seg's code measures 16 other classes, not COCOStuff-27",
    ("U2Seg", "cityscapes"): "U2Seg's code has no Cityscapes evaluation",
    ("UnSAM", "coco_agnostic"): "UnSAM's README gives the same AR, at 1000 detections",
    ("STEGO", "cocostuff27"): "one-to-one mapping, DenseCRF",
}


def _rows_of_table_2() -> list[PublishedRow]:
    rows = []
    for method, data, values in _TABLE_2:
        start = 0
        for protocol, group, metrics in _COLUMNS_2:
            cells = values[start : start + len(metrics)]
            start += len(metrics)
            if method == "UnSAM":
                metrics = ("AP@1000", "AR@1000")
            figures = {metric: value for metric, value in zip(metrics, cells, strict=False) if value is not None}
            unstated = _NO_LIMIT if method == "S2-UniSeg" and protocol == "coco_agnostic" else ""
            unstated = "strategy and UVO file not stated" if (method, protocol) == ("S2-UniSeg", "uvo") else unstated
            note = _NOTES_2.get((method, protocol), unstated)
            if figures:
                rows.append(PublishedRow(method, data, protocol, group, figures, _PAPER, note))
    return rows


PUBLISHED: tuple[PublishedRow, ...] = (
    *_rows_of_table_2(),
    PublishedRow(
        "CutLER cascade", "ImageNet", "coco_agnostic", "bbox_agnostic", {"AP50": 21.9, "AR@100": 32.7}, _CUTLER_README
    ),
    PublishedRow("CutLER cascade", "ImageNet", "uvo", "bbox_agnostic", {"AP50": 31.7, "AR@100": 42.8}, _CUTLER_README),
    PublishedRow("CutLER", "ImageNet", "coco_agnostic", "segm_agnostic", {"AP": 9.2}, _LEADERBOARD),
    PublishedRow("CutLER", "ImageNet", "uvo", "segm_agnostic", {"AP": 10.1}, _LEADERBOARD),
    PublishedRow(
        "U2Seg",
        "ImageNet",
        "coco_panoptic",
        "panoptic_mapped",
        {"PQ": 11.1},
        _LEADERBOARD,
        "the paper's text counts its gain of 5.1 from this figure, its Table 2 gives 16.1",
    ),
    PublishedRow("U2Seg, 827 pseudo-classes", "ImageNet", "cityscapes", "panoptic_mapped", {"PQ": 18.4}, _LEADERBOARD),
    *(
        PublishedRow(method, "none", "pseudo_masks", group, figures, _PAPER_TIMES, note)
        for method, seconds, ap, miou, note in (
            ("Divide-and-Conquer", 5.27, 7.6, None, "all scores are 1 in UnSAM's code"),
            ("TokenCut", 2.25, 3.5, None, ""),
            ("MaskCut", 4.72, 6.7, None, ""),
            ("MaskCut + STEGO", 4.86, 6.7, 26.3, ""),
            ("UniAP", 0.045, 6.2, 21.8, "hardware, data and mapping of the mIoU not stated"),
        )
        for group, figures in (
            ("segm_agnostic", {"AP": ap, "s/picture": seconds}),
            ("sem_seg_mapped", {"mIoU": miou, "s/picture": seconds} if miou is not None else {}),
        )
        if figures
    ),
)


def check_protocol(protocol: str) -> None:
    """Raise a ValueError if a protocol is neither "" nor one of :data:`PROTOCOLS`."""
    if protocol and protocol not in PROTOCOLS:
        raise ValueError(f"EVALUATION.PROTOCOL must be empty or one of {sorted(PROTOCOLS)}, got {protocol!r}")


def published_rows(protocol: str, group: str) -> list[PublishedRow]:
    """Return the rows that stand beside a group of results under a protocol; none if the protocol is ``""``.

    Raises:
        ValueError: if the protocol is unknown.
    """
    check_protocol(protocol)
    return [row for row in PUBLISHED if row.protocol == protocol and row.group == group]
