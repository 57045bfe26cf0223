"""One HTML page that holds pictures and masks, needs nothing else, and lets a person choose what is shown."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from s2uniseg_d2.data.pictures import Picture
from s2uniseg_d2.engine.drawing import palette, resize_to, upsample_labels, upsample_masks
from s2uniseg_d2.evaluation.coco_results import encode_masks
from s2uniseg_d2.evaluation.whole_files import replacing
from s2uniseg_d2.segmenter import Segmentation

from .overlay import mask_areas

LONGEST_PX = 640  # of a picture in the page
JPEG_QUALITY = 82
OWN_COLOURS = 60  # that masks take in turns where each is to have its own


class Card(NamedTuple):
    """What the page holds of one picture.

    Attributes:
        about: name, sizes, seconds and, by kind, the masks' clusters, shares of the area, scores, levels; small, read
            at once.
        part: the picture and the masks' outlines as JSON; large, read when the picture is looked at.
    """

    about: dict[str, Any]
    part: str


class PageFacts(NamedTuple):
    """What the page says above its pictures.

    Attributes:
        title: of the page.
        sentences: below it.
        floor: smallest score that is in the page.
        skipped: name and reason of what could not be read.
    """

    title: str
    sentences: Sequence[str]
    floor: float
    skipped: Sequence[tuple[str, str]]


def make_card(name: str, picture: Picture, found: Segmentation, kinds: Sequence[str], seconds: float) -> Card:
    """The card of one picture; masks are kept at the size of the page's picture.

    Args:
        name: of the picture.
        picture: ``(H, W, 3)``.
        found: its results.
        kinds: of instance, semantic and panoptic, those that are shown.
        seconds: that the model took.
    """
    height, width = picture.shape[:2]
    scale = min(1.0, LONGEST_PX / max(height, width))
    page = (max(1, round(height * scale)), max(1, round(width * scale)))
    about: dict[str, Any] = {
        "name": shown_name(name),
        "width": width,
        "height": height,
        "page": {"width": page[1], "height": page[0]},
        "seconds": round(seconds, 4),
        "masks": {},
    }
    part: dict[str, Any] = {"picture": _data_uri(resize_to(picture, page)), "masks": {}}
    for kind in kinds:
        columns, masks = _FORMS[kind](found, page)
        about["masks"][kind], part["masks"][kind] = columns, [item["counts"] for item in encode_masks(masks)]
    return Card(about, _as_script_json(part))


def _instances(found: Segmentation, page: tuple[int, int]) -> tuple[dict[str, Any], torch.Tensor]:
    instances = found.instances
    columns = {
        "cluster": instances.pred_classes.tolist(),
        "share": _round(mask_areas(instances.pred_masks) / found.semantic.numel()),
        "score": _round(instances.scores.double().numpy()),
    }
    if instances.has("levels"):
        columns["level"] = instances.levels.tolist()
    return columns, torch.from_numpy(upsample_masks(instances.pred_masks, page))


def _semantic(found: Segmentation, page: tuple[int, int]) -> tuple[dict[str, Any], torch.Tensor]:
    labels, counts = count_clusters(found.semantic)
    small = torch.from_numpy(upsample_labels(found.semantic.numpy(), page))
    columns = {"cluster": labels.tolist(), "share": _round(counts.numpy() / found.semantic.numel())}
    return columns, small == labels[:, None, None]


def count_clusters(semantic: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The clusters of a map, -1 left out, and how many pixels each has; sooner than ``unique``, which sorts."""
    counts = torch.bincount(semantic.flatten() + 1)[1:]
    labels = counts.nonzero()[:, 0]
    return labels, counts[labels]


def _panoptic(found: Segmentation, page: tuple[int, int]) -> tuple[dict[str, Any], torch.Tensor]:
    small = torch.from_numpy(upsample_labels(found.panoptic.numpy(), page))
    ids = torch.tensor([segment["id"] for segment in found.segments], dtype=small.dtype)
    columns = {
        "cluster": [segment["category_id"] for segment in found.segments],
        "share": [round(segment["area"] / found.panoptic.numel(), 5) for segment in found.segments],
        "score": [round(segment["score"], 4) for segment in found.segments],
        "thing": [int(segment["isthing"]) for segment in found.segments],
    }
    return columns, small == ids[:, None, None]


_FORMS = {"instance": _instances, "semantic": _semantic, "panoptic": _panoptic}
KINDS = tuple(_FORMS)


def write_page(path: Path, cards: Sequence[Card], facts: PageFacts) -> None:
    """Write the page of some pictures, at least one, whole or not at all.

    Names stand in it as text, whatever characters they hold; a policy in its head forbids it to fetch anything and
    to run anything but the page's own script.

    Raises:
        OSError: if it cannot be written.
    """
    kinds = list(cards[0].about["masks"])
    clusters = sorted({label for card in cards for kind in kinds for label in card.about["masks"][kind]["cluster"]})
    levels = {
        kind: 1 + max((level for card in cards for level in card.about["masks"][kind].get("level", ())), default=-1)
        for kind in kinds
    }
    meta = {
        "kinds": kinds,
        "levels": levels,
        "floor": facts.floor,
        "colours": dict(zip(clusters, _hex(clusters), strict=True)),
        "own": _hex(range(OWN_COLOURS)),
        "pictures": [card.about for card in cards],
    }
    parts = (
        f'<script type="application/json" id="part-{number}">{card.part}</script>' for number, card in enumerate(cards)
    )
    script = _text("page.js")
    text = _template("page.html").substitute(
        title=html.escape(facts.title),
        facts=html.escape(" ".join(facts.sentences)),
        style=_text("page.css"),
        script=script,
        digest=_digest(f"\n{script}\n"),
        cards="\n".join(_article(card) for card in cards),
        skipped=_skipped(facts.skipped),
        meta=_as_script_json(meta),
        parts="\n".join(parts),
    )
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def shown_name(name: str) -> str:
    """A file's name with what is no text in it replaced, so that any file can be named in a text."""
    return name.encode("utf-8", "replace").decode("utf-8")


def _article(card: Card) -> str:
    about = card.about
    name, width, height = html.escape(about["name"]), about["page"]["width"], about["page"]["height"]
    return (
        f'<article style="--shape: {width / height:.3f}"><button type="button" class="stage" '
        f'style="aspect-ratio: {width} / {height}" aria-label="Masks of {name}"><img alt=""><canvas></canvas></button>'
        f"<p><b>{name}</b><span>{about['width']} × {about['height']}</span><span>{about['seconds']:.2f} s</span>"
        '<span class="masks"></span><span class="here"></span></p></article>'
    )


def _skipped(skipped: Sequence[tuple[str, str]]) -> str:
    if not skipped:
        return ""
    items = "".join(f"<li>{html.escape(shown_name(reason))}</li>" for _, reason in skipped)
    return f'<section id="skipped"><h2>{len(skipped)} skipped</h2><ul>{items}</ul></section>'


def _hex(labels: Sequence[int]) -> list[str]:
    return ["#" + bytes(colour).hex() for colour in palette(labels)]


def _data_uri(picture: Picture) -> str:
    coded = cv2.imencode(".jpg", picture[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
    return "data:image/jpeg;base64," + base64.b64encode(np.asarray(coded).tobytes()).decode("ascii")


def _as_script_json(content: Any) -> str:
    """JSON that may stand in a script element: no "<" can end it."""
    return json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")


def _digest(script: str) -> str:
    """What a content security policy knows a script by: all between its tags."""
    return base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")


def _round(values: NDArray[np.float64]) -> list[float]:
    return [round(value, 5) for value in values.tolist()]


def _text(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8").strip()


def _template(name: str) -> Template:
    return Template(_text(name) + "\n")
