"""Detectron2 predictions of one picture, from decoder queries or from UniAP's own masks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes, Instances
from torch import Tensor
from torch.nn import functional

from s2uniseg_d2.core.inference import instance_inference, panoptic_inference, score_instances, semantic_inference
from s2uniseg_d2.core.instance_parts import drop_duplicates, split_connected
from s2uniseg_d2.core.ops.masks import mask_boxes
from s2uniseg_d2.core.ops.upscale import maps_to_pixels
from s2uniseg_d2.core.semantic_scores import semantic_scores
from s2uniseg_d2.core.structures import PseudoLabels, PseudoMasks, QueryPrediction

# UniAP knows no things and stuff: a region that lies along more than this share of the picture's border is stuff
STUFF_BORDER_SHARE = 0.15


_Queries = tuple[Tensor, Tensor, Tensor]  # mask logits, objectness and pseudo-classes of some queries of a picture


@dataclass(frozen=True)
class PredictionSettings:
    """How query outputs become results; see ``MODEL.INFERENCE``."""

    predictor: str = "decoder"
    top_k: int = 100
    object_threshold: float = 0.8
    overlap_threshold: float = 0.8
    uses_objectness: bool = True
    splits_instances: bool = False
    duplicate_iou: float = 1.0
    gives_semantic_scores: bool = False  # adds sem_seg_scores, which the mean with a mirror image needs

    @classmethod
    def from_config(cls, cfg: CfgNode) -> PredictionSettings:
        """Read ``MODEL.INFERENCE``, ``TEST.DETECTIONS_PER_IMAGE``, and whether objectness is learnt."""
        inference = cfg.MODEL.INFERENCE
        return cls(
            predictor=inference.PREDICTOR,
            top_k=cfg.TEST.DETECTIONS_PER_IMAGE,
            object_threshold=inference.OBJECT_THRESHOLD,
            overlap_threshold=inference.OVERLAP_THRESHOLD,
            splits_instances=inference.SPLIT_INSTANCES,
            duplicate_iou=inference.DUPLICATE_IOU,
            uses_objectness=cfg.MODEL.LOSS.OBJECTNESS_WEIGHT > 0,
        )


def predict_from_queries(
    prediction: QueryPrediction,
    classes: Tensor,
    slices: dict[str, slice],
    settings: PredictionSettings,
    *,
    padded_size: tuple[int, int],
    image_size: tuple[int, int],
    output_size: tuple[int, int],
) -> dict[str, Any]:
    """Results of one picture at its original size.

    Args:
        prediction: one picture's final prediction, without the batch axis.
        classes: ``(q,)`` pseudo-class of every query.
        slices: the queries of each group.
        settings: thresholds.
        padded_size: rows and columns of the network's input, in pixels.
        image_size: its part that holds the picture.
        output_size: the original picture's size.
    """
    masks = functional.interpolate(prediction.masks[None].float(), padded_size, mode="bilinear", align_corners=False)
    masks = masks[..., : image_size[0], : image_size[1]]
    if image_size != output_size:
        masks = functional.interpolate(masks, output_size, mode="bilinear", align_corners=False)
    masks, objectness = masks[0], prediction.objectness.float()
    if not settings.uses_objectness:
        # an untrained objectness must not rank anything: every query counts as an object
        objectness = torch.tensor([20.0, -20.0], device=masks.device).expand(len(objectness), 2)
    ins, sem = slices["ins"], slices["sem"]
    things = _find_things(masks[ins], objectness[ins], classes[ins], settings)
    instances = instance_inference(*things, top_k=settings.top_k)
    things, stuff = _tell_apart(things, (masks[sem], objectness[sem], classes[sem]), settings.duplicate_iou)
    panoptic_map, segments = panoptic_inference(
        *things,
        *stuff,
        object_threshold=settings.object_threshold,
        overlap_threshold=settings.overlap_threshold,
    )
    results: dict[str, Any] = {
        "instances": _to_instances(output_size, instances.masks, instances.scores, instances.classes, instances.boxes),
        "sem_seg_labels": semantic_inference(masks[sem], objectness[sem], classes[sem]),
        "panoptic_seg": (panoptic_map, segments),
    }
    if settings.gives_semantic_scores:
        results["sem_seg_scores"] = semantic_scores(masks[sem], objectness[sem], classes[sem])
    return results


def _find_things(masks: Tensor, objectness: Tensor, classes: Tensor, settings: PredictionSettings) -> _Queries:
    """The instance queries' masks, objectness and classes; split and without duplicates where that is asked for."""
    if settings.splits_instances:
        masks, queries = split_connected(masks)
        objectness, classes = objectness[queries], classes[queries]
    if settings.duplicate_iou < 1:
        kept = drop_duplicates(masks > 0, score_instances(masks, objectness)[0], settings.duplicate_iou)
        return _take((masks, objectness, classes), kept)
    return masks, objectness, classes


def _tell_apart(things: _Queries, stuff: _Queries, duplicate_iou: float) -> tuple[_Queries, _Queries]:
    """Things and stuff for the panoptic map, of near duplicates the best alone, whichever group it is of.

    Duplicates win some of each other's pixels, and what has lost too many is dropped: both would go.
    """
    if duplicate_iou == 1:
        return things, stuff
    masks, objectness = torch.cat([things[0], stuff[0]]), torch.cat([things[1], stuff[1]])
    best = drop_duplicates(masks > 0, score_instances(masks, objectness)[0], duplicate_iou).sort().values
    is_thing = best < len(things[0])
    return _take(things, best[is_thing]), _take(stuff, best[~is_thing] - len(things[0]))


def _take(queries: _Queries, places: Tensor) -> _Queries:
    masks, objectness, classes = queries
    return masks[places], objectness[places], classes[places]


def score_masks(labels: PseudoMasks, features: Tensor) -> Tensor:
    """Confidence of UniAP's masks, ``(n,)`` in [0, 1].

    The paper is silent: coarser layers rank before finer ones, and within a layer the mean similarity of a mask's
    tokens to its embedding decides.

    Args:
        labels: on the picture's grid; no mask is empty.
        features: ``(d, h, w)`` the map they came from.
    """
    tokens = features.flatten(1).float()
    flat = labels.masks.flatten(1).float()
    sizes = flat.sum(dim=1, keepdim=True)
    # lengths divide the masks, not the far larger map; channels in parts that stay in a processor's cache
    squares = torch.stack([part.square().sum(dim=0) for part in tokens.split(64)]).sum(dim=0)
    sums = flat.div_(squares.sqrt_().clamp_min_(1e-12)) @ tokens.T
    cohesion = (sums / sizes * labels.embeddings).sum(dim=1).clamp(0.0, 1.0)
    return (labels.level + cohesion) / (labels.level.amax() + 1 if len(cohesion) else 1)


def predict_from_labels(
    labels: PseudoLabels,
    features: Tensor,
    classify: Callable[[Tensor], Tensor],
    *,
    top_k: int,
    image_size: tuple[int, int],
    output_size: tuple[int, int],
    duplicate_iou: float = 1.0,
) -> dict[str, Any]:
    """UniAP's masks of one picture as predictions, so that one evaluation serves teacher and student.

    Instances are ranked by :func:`score_masks` and have their 0-based layer in ``levels``. Each pixel's semantic class
    is that of the coarsest semantic mask on it, -1 where there is none. The panoptic result holds the coarsest instance
    masks; those along much of the border count as stuff.

    Args:
        labels: on the stride-4 grid of the picture.
        features: ``(d, h, w)`` the map they came from.
        classify: pseudo-class of every embedding.
        top_k: at most this many instances.
        image_size: rows and columns of the network's input that hold the picture.
        output_size: the original picture's size.
        duplicate_iou: instances that overlap a better one by more are left out.
    """
    instance, semantic = labels
    scores = score_masks(instance, features)
    classes = classify(instance.embeddings)

    # painted on the grid, fine to coarse, so that memory does not grow with masks times pixels
    label_grid = torch.full(features.shape[-2:], -1, dtype=torch.int64, device=features.device)
    for mask, label in zip(semantic.masks, classify(semantic.embeddings), strict=True):
        label_grid = torch.where(mask, label, label_grid)
    panoptic_grid = torch.zeros(features.shape[-2:], dtype=torch.int32, device=features.device)
    for i, mask in enumerate(instance.masks):
        panoptic_grid[mask] = i + 1
    label_map = _to_pixels(label_grid, image_size, output_size)
    panoptic_map = _to_pixels(panoptic_grid, image_size, output_size)

    segments = []
    border = torch.cat([panoptic_map[0], panoptic_map[-1], panoptic_map[:, 0], panoptic_map[:, -1]])
    for i in panoptic_map.unique().tolist():
        if i:
            segments.append(
                {
                    "id": int(i),
                    "isthing": bool((border == i).float().mean() <= STUFF_BORDER_SHARE),
                    "category_id": int(classes[i - 1]),
                    "score": float(scores[i - 1]),
                    "area": int((panoptic_map == i).sum()),
                }
            )
    best = drop_duplicates(instance.masks, scores, duplicate_iou)[:top_k]
    masks = _to_pixels(instance.masks[best], image_size, output_size)
    instances = _to_instances(output_size, masks, scores[best], classes[best], mask_boxes(masks))
    instances.levels = instance.level[best]
    return {
        "instances": instances,
        "sem_seg_labels": label_map,
        "panoptic_seg": (panoptic_map, segments),
    }


def _to_pixels(maps: Tensor, image_size: tuple[int, int], output_size: tuple[int, int]) -> Tensor:
    """Stride-4 maps ``(..., h, w)`` at the original picture's pixels, nearest cell."""
    return maps_to_pixels(maps, (image_size[0] / 4, image_size[1] / 4), output_size)


def _to_instances(size: tuple[int, int], masks: Tensor, scores: Tensor, classes: Tensor, boxes: Tensor) -> Instances:
    instances = Instances(size)
    instances.pred_masks = masks
    instances.pred_boxes = Boxes(boxes)
    instances.scores = scores
    instances.pred_classes = classes
    return instances
