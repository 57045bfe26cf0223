"""Pictures in, masks out: a trained model, or UniAP on any ViT, behind one call."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from torch import Tensor

import s2uniseg_d2.modeling  # noqa: F401  (registers the model)
from s2uniseg_d2.config import load_config
from s2uniseg_d2.core.ops.masks import mask_boxes
from s2uniseg_d2.core.tensor_files import refuse_broken
from s2uniseg_d2.data.augmentation import resize_longest
from s2uniseg_d2.data.pictures import Picture
from s2uniseg_d2.downloads import local_file
from s2uniseg_d2.engine.checkpoint import SafeCheckpointer
from s2uniseg_d2.engine.drawing import check_image, upsample_labels, upsample_masks
from s2uniseg_d2.labeling.encoder import name_vit, read_teacher
from s2uniseg_d2.labeling.maker import find_device
from s2uniseg_d2.modeling.s2uniseg import S2UniSeg

PREDICTORS = ("decoder", "uniap")
LEAST_SCORE = {"decoder": 0.5, "uniap": 0.0}  # UniAP's scores rank masks by level; they are no confidence
LARGEST_PX = 2048  # masks of greater pictures are predicted at this longer side and enlarged, which bounds memory
# what a prediction reads; the rest of a checkpoint serves training
_PARTS = {
    "decoder": ("teacher_backbone.", "sem_seg_head.", "query_proj.", "teacher_head."),
    "uniap": ("teacher_backbone.", "teacher_head.", "center."),
}


class Segmentation(NamedTuple):
    """All results of one picture, at its size and on the CPU.

    Attributes:
        instances: ``pred_masks`` (n, H, W) bool, ``pred_boxes`` XYXY in pixels, ``scores`` in [0, 1], ``pred_classes``
            (the cluster ids), best first; with the predictor "uniap" also ``levels``, the 0-based layer of each mask.
        semantic: ``(H, W)`` int64 cluster id of every pixel, -1 where there is none.
        panoptic: ``(H, W)`` int32 segment ids, 0 where there is none.
        segments: of the panoptic map: ``id``, ``isthing``, ``category_id`` (the cluster), ``score``, ``area``.
    """

    instances: Instances
    semantic: Tensor
    panoptic: Tensor
    segments: list[dict[str, Any]]


class Segmenter:
    """Segments one picture at a time.

    Args:
        model: an S2UniSeg with its weights; used in evaluation mode.
        longest_px: longer side of the picture that the model sees.
        score_threshold: instances with lower scores are left out; None takes 0.5, and 0 for UniAP's masks, whose
            scores rank levels.

        source: what makes the masks, in a sentence for those who look at them.

    Raises:
        ValueError: if a number is out of its range.
    """

    def __init__(
        self, model: S2UniSeg, *, longest_px: int = 1024, score_threshold: float | None = None, source: str = ""
    ) -> None:
        self.predictor = model.prediction.predictor
        least = LEAST_SCORE[self.predictor] if score_threshold is None else score_threshold
        if not 0 <= least <= 1:
            raise ValueError(f"score_threshold must lie in [0, 1], got {least}")
        if longest_px < 32:
            raise ValueError(f"longest_px must be at least 32, got {longest_px}")
        self.model = model.requires_grad_(False).eval()
        self.longest_px = longest_px
        self.score_threshold = least
        self.source = source
        self.num_clusters = int(model.center.center.shape[-1])  # cluster ids are smaller

    @classmethod
    def from_pretrained(
        cls,
        weights: str | Path,
        *,
        device: str | torch.device | None = None,
        config_file: str | Path | None = None,
        predictor: str | None = None,
        score_threshold: float | None = None,
        image_size: int | None = None,
        overrides: Sequence[str] = (),
    ) -> Segmenter:
        """The segmenter of a checkpoint of ``train_net.py``, or of a ViT's weights alone.

        Files are read with ``weights_only=True``: they cannot run code.

        Args:
            weights: a checkpoint; or, with the predictor "uniap", also the weights of a ViT: a DINO file or the name
                of a timm model. No decoder is trained then, and cluster ids come from a random head: they tell
                regions of one look apart roughly, the same in every picture. An address with a hash stands for
                its file (:mod:`~s2uniseg_d2.downloads`).
            device: None takes ``MODEL.DEVICE`` where that is there, and the CPU elsewhere.
            config_file: YAML of the model; None takes the ``config.yaml`` beside the weights, where ``train_net.py``
                puts it, and the paper's where there is none.
            predictor: "decoder", or "uniap" for the teacher's own masks; None takes what the config says.
            score_threshold: see the class.
            image_size: longer side that the model sees, a multiple of 32; None takes ``INPUT.TEST_LONGEST_PX``, for
                UniAP ``INPUT.GLOBAL_LONGEST_PX``.
            overrides: ``KEY VALUE`` words on top of the config.

        Raises:
            ValueError: if the weights do not exist, are damaged, hold NaN or infinity, or do not fit the config; for
                an unknown config, device or predictor; if a decoder is asked for and none is trained.
        """
        weights = local_file(str(weights))
        path = Path(weights).expanduser()
        cfg = load_config(config_file or _config_beside(path), list(overrides))
        if predictor is not None:
            if predictor not in PREDICTORS:
                raise ValueError(f"predictor must be one of {', '.join(PREDICTORS)}, got {predictor!r}")
            cfg.MODEL.INFERENCE.PREDICTOR = predictor
        if device is None:
            device = cfg.MODEL.DEVICE if cfg.MODEL.DEVICE == "cpu" or torch.cuda.is_available() else "cpu"
        cfg.MODEL.DEVICE = str(find_device(device))
        is_labeler = cfg.MODEL.INFERENCE.PREDICTOR == "uniap"
        if is_labeler:
            # the best hundred would be the coarse levels alone; the labeler has a limit of its own
            cfg.TEST.DETECTIONS_PER_IMAGE = cfg.MODEL.UNIAP.MAX_MASKS
        if image_size is None:
            image_size = cfg.INPUT.GLOBAL_LONGEST_PX if is_labeler else cfg.INPUT.TEST_LONGEST_PX
        model, source = _load_model(cfg, path, weights)
        return cls(model, longest_px=image_size, score_threshold=score_threshold, source=source)

    def __call__(self, image: Picture) -> Instances:
        """The instances of one picture, ``(H, W, 3)`` uint8 RGB; see :class:`Segmentation`."""
        return self.segment(image).instances

    def semantic(self, image: Picture) -> Tensor:
        """The cluster id of every pixel, ``(H, W)`` int64; see :class:`Segmentation`."""
        return self.segment(image).semantic

    def panoptic(self, image: Picture) -> tuple[Tensor, list[dict[str, Any]]]:
        """The map of segment ids and its segments; see :class:`Segmentation`."""
        found = self.segment(image)
        return found.panoptic, found.segments

    @torch.no_grad()
    def segment(self, image: Picture) -> Segmentation:
        """All results of one picture, from one pass of the model.

        Args:
            image: ``(H, W, 3)`` uint8 RGB.

        Raises:
            ValueError: if the picture is not as said.
            FloatingPointError: if the model's scores are not finite.
        """
        check_image(image)
        size = (image.shape[0], image.shape[1])
        scale = min(1.0, LARGEST_PX / max(size))
        height, width = (max(1, round(side * scale)) for side in size)
        pixels = torch.from_numpy(np.ascontiguousarray(resize_longest(image, self.longest_px).transpose(2, 0, 1)))
        output = self.model.predict([{"image": pixels, "height": height, "width": width}])[0]
        instances = output["instances"].to("cpu")
        if not instances.scores.isfinite().all():
            raise FloatingPointError("the model's scores are not finite: its weights are damaged")
        instances = instances[instances.scores >= self.score_threshold]
        panoptic, segments = output["panoptic_seg"]
        found = Segmentation(instances, output["sem_seg_labels"].cpu(), panoptic.cpu(), segments)
        return found if (height, width) == size else _enlarge(found, size)


def _enlarge(found: Segmentation, size: tuple[int, int]) -> Segmentation:
    """The results at ``size`` = (rows, columns): each pixel takes the nearest one that was predicted."""
    masks = torch.from_numpy(upsample_masks(found.instances.pred_masks, size))
    instances = Instances(size)
    for name, value in found.instances.get_fields().items():
        if name not in ("pred_masks", "pred_boxes"):
            instances.set(name, value)
    instances.pred_masks, instances.pred_boxes = masks, Boxes(mask_boxes(masks))
    semantic, panoptic = (
        torch.from_numpy(upsample_labels(labels.numpy(), size)) for labels in (found.semantic, found.panoptic)
    )
    areas = torch.bincount(panoptic.flatten())
    segments = [{**segment, "area": int(areas[segment["id"]])} for segment in found.segments]
    return Segmentation(instances, semantic, panoptic, segments)


def _config_beside(weights: Path) -> str:
    path = weights.parent / "config.yaml"
    return str(path) if weights.is_file() and path.is_file() else ""


def _load_model(cfg: CfgNode, path: Path, weights: str) -> tuple[S2UniSeg, str]:
    """The model of a config with a checkpoint's weights, or with a ViT's alone where UniAP predicts; and its source."""
    is_labeler = cfg.MODEL.INFERENCE.PREDICTOR == "uniap"
    if not is_labeler and not path.is_file():
        raise ValueError(
            f"weights must be a checkpoint of train_net.py, a file that exists, got {weights!r}; a ViT's weights alone "
            "are enough for the predictor 'uniap'"
        )
    is_vit_alone = is_labeler and not (path.is_file() and read_teacher(path))
    cfg.MODEL.VIT.WEIGHTS = ""  # a checkpoint holds the whole model
    if is_vit_alone:
        name_vit(cfg, weights)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(max(cfg.SEED, 0))  # what no weights fill is the same in every run
        model: S2UniSeg = build_model(cfg)
    if is_vit_alone:
        named = weights or "a ViT with random weights"
        return model, f"UniAP's masks of {named}: no decoder is trained, and clusters come from a random head."
    _StrictCheckpointer(model).load(str(path), checkpointables=[])
    return model, f"{'UniAP with the teacher' if is_labeler else 'Decoder'} of {path.parent.name}/{path.name}."


class _StrictCheckpointer(SafeCheckpointer):
    """Refuses weights that leave a part of the prediction random or make it NaN, instead of warning of them."""

    def _refuse_foreign(self, filename: str, state: Any) -> None:
        parts = _PARTS[self.model.prediction.predictor]
        ours = {name: value for name, value in self.model.state_dict().items() if name.startswith(parts)}
        unfit = [name for name, value in ours.items() if getattr(state.get(name), "shape", None) != value.shape]
        if unfit:
            raise ValueError(
                f"weights file {filename} does not fit the config: {len(unfit)} of the {len(ours)} tensors that a "
                f"prediction needs differ in name or shape ({', '.join(unfit[:3])}); name the config file that it was "
                "trained with, which is config.yaml in the folder of that run"
            )
        refuse_broken({name: state[name] for name in ours}, f"weights file {filename}")
