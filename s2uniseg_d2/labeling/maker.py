"""Pictures in, instance and semantic pseudo-masks at their own resolution out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from s2uniseg_d2.config import load_config
from s2uniseg_d2.core.labelers.base import Labeler
from s2uniseg_d2.core.ops.upscale import UPSCALE_METHODS, masks_to_pixels
from s2uniseg_d2.core.structures import PseudoLabels, PseudoMasks
from s2uniseg_d2.data.augmentation import resize_longest
from s2uniseg_d2.data.pictures import Picture
from s2uniseg_d2.engine.drawing import check_image
from s2uniseg_d2.modeling.backbone import ViTAdapterBackbone
from s2uniseg_d2.modeling.labelers import build_uniap
from s2uniseg_d2.modeling.prediction import score_masks

from .encoder import build_encoder


class MaskSet(NamedTuple):
    """Masks of one kind of one picture, fine to coarse.

    Attributes:
        masks: ``(n, H, W)`` bool at the picture's size; none is empty.
        levels: ``(n,)`` int64, the 0-based UniAP layer that made the mask.
        scores: ``(n,)`` float32 in [0, 1], coarse and even masks high (:func:`score_masks`).
        embeddings: ``(n, d)`` float32 rows of unit length.
        areas: ``(n,)`` int64 pixels.
    """

    masks: NDArray[np.bool_]
    levels: NDArray[np.int64]
    scores: NDArray[np.float32]
    embeddings: NDArray[np.float32]
    areas: NDArray[np.int64]


class PictureLabels(NamedTuple):
    """Instance masks (connected regions) and semantic masks (scattered regions) of one picture."""

    instance: MaskSet
    semantic: MaskSet


class GridLabels(NamedTuple):
    """Masks of one picture on its token grid, on the CPU: a thousand of them weigh little, unlike those in pixels.

    Attributes:
        labels: masks ``(n, rows, columns)`` without padding.
        scores: ``(n,)`` float32 of the instance and of the semantic masks.
        valid: token cells, rows and columns, that the picture covers; the last cell of a line may be covered in part.
        size: rows and columns of the picture in pixels.
    """

    labels: PseudoLabels
    scores: tuple[Tensor, Tensor]
    valid: tuple[float, float]
    size: tuple[int, int]


class PseudoMaskMaker:
    """Labels pictures: resize, encode, UniAP, back to pixels.

    A picture's masks depend on nothing but the picture: each is padded to the next multiples of 32 pixels and no
    further, for the ViT attends to padding and fits its positions to the padded size. Pictures of one padded size share
    an encoder call, so that their place in a batch matters within rounding only.

    Args:
        encoder: moved to ``device`` and switched to evaluation mode.
        labeler: makes masks from its features.
        feature_stride: of the map that the labeler reads, 4 or 16.
        image_size: longer side of the encoder's input in pixels, a multiple of 32.
        pixel_mean: per channel, RGB, 0 to 255.
        pixel_std: per channel.
        device: where encoder and labeler run.
        upscale: "nearest" repeats cells; "bilinear" smooths outlines; "edges" also moves them to the picture's edges.

    Raises:
        ValueError: if an argument is out of range or the device is not there.
    """

    def __init__(
        self,
        encoder: ViTAdapterBackbone,
        labeler: Labeler,
        *,
        feature_stride: int = 4,
        image_size: int = 512,
        pixel_mean: Sequence[float] = (123.675, 116.28, 103.53),
        pixel_std: Sequence[float] = (58.395, 57.12, 57.375),
        device: str | torch.device = "cpu",
        upscale: str = "nearest",
    ) -> None:
        if image_size < 32 or image_size % 32:
            raise ValueError(f"image_size must be a positive multiple of 32, got {image_size}")
        if feature_stride not in (4, 16):
            raise ValueError(f"feature_stride must be 4 or 16, got {feature_stride}")
        if upscale not in UPSCALE_METHODS:
            raise ValueError(f"upscale must be one of {', '.join(UPSCALE_METHODS)}, got {upscale!r}")
        self.device = find_device(device)
        self.encoder = encoder.to(self.device).requires_grad_(False).eval()
        self.labeler = labeler
        self.feature_stride = feature_stride
        self.image_size = image_size
        self.upscale = upscale
        self.pixel_mean = torch.tensor(pixel_mean, dtype=torch.float32, device=self.device).view(-1, 1, 1)
        self.pixel_std = torch.tensor(pixel_std, dtype=torch.float32, device=self.device).view(-1, 1, 1)

    @classmethod
    def from_pretrained(
        cls,
        weights: str | None = None,
        config_file: str | Path | None = None,
        *,
        device: str | torch.device | None = None,
        image_size: int | None = None,
        upscale: str = "nearest",
        overrides: Sequence[str] = (),
    ) -> PseudoMaskMaker:
        """The maker of a config, by default the paper's (ViT-B/8, 512 pixels, five layers) with random weights.

        Args:
            weights: see :func:`build_encoder`; "" is random, None is what the config names.
            config_file: YAML; None takes the defaults of :mod:`s2uniseg_d2.config`. A checkpoint of a smaller model
                needs the file that it was trained with.
            device: None takes ``MODEL.DEVICE`` where that is there, and the CPU elsewhere.
            image_size: longer side in pixels; None takes ``INPUT.GLOBAL_LONGEST_PX``.
            upscale: see above.
            overrides: ``KEY VALUE`` words on top of the config.

        Raises:
            ValueError: for anything wrong with config, weights or arguments.
        """
        cfg = load_config(config_file or "", list(overrides))
        if device is None:
            device = cfg.MODEL.DEVICE if cfg.MODEL.DEVICE == "cpu" or torch.cuda.is_available() else "cpu"
        place = find_device(device)
        cfg.MODEL.DEVICE = str(place)
        return cls(
            build_encoder(cfg, weights),
            build_uniap(cfg),
            feature_stride=cfg.MODEL.UNIAP.FEATURE_STRIDE,
            image_size=cfg.INPUT.GLOBAL_LONGEST_PX if image_size is None else image_size,
            pixel_mean=cfg.MODEL.PIXEL_MEAN,
            pixel_std=cfg.MODEL.PIXEL_STD,
            device=place,
            upscale=upscale,
        )

    def __call__(self, image: Picture) -> PictureLabels:
        """The masks of one picture, ``(H, W, 3)`` uint8 RGB, at its own size."""
        return self.label([image])[0]

    def label(self, images: Sequence[Picture]) -> list[PictureLabels]:
        """The masks of every picture of a batch; sizes may differ.

        Raises:
            ValueError: if a picture is not uint8 of shape ``(H, W, 3)``.
        """
        for image in images:
            check_image(image)
        grids = self.label_grids(
            [self.resize(image) for image in images], [(image.shape[0], image.shape[1]) for image in images]
        )
        return [self.to_pixels(grid, image) for grid, image in zip(grids, images, strict=True)]

    def settings(self) -> dict[str, Any]:
        """What the masks depend on beside the encoder's weights and the device, as JSON values."""
        return {
            "embedding_dim": self.encoder.output_shape()["res2"].channels,
            "labeler": f"{type(self.labeler).__name__} {getattr(self.labeler, 'config', '')}",
            "feature_stride": self.feature_stride,
            "image_size": self.image_size,
            "pixel_mean": [round(value, 4) for value in self.pixel_mean.flatten().tolist()],
            "pixel_std": [round(value, 4) for value in self.pixel_std.flatten().tolist()],
            "upscale": self.upscale,
        }

    def resize(self, image: Picture) -> Picture:
        """The picture as the encoder sees it, its longer side at ``image_size``."""
        return resize_longest(image, self.image_size)

    def label_grids(self, resized: Sequence[Picture], sizes: Sequence[tuple[int, int]]) -> list[GridLabels]:
        """The masks on token grids.

        Args:
            resized: pictures out of :meth:`resize`.
            sizes: rows and columns of the pictures that they were made from.
        """
        groups: dict[tuple[int, int], list[int]] = {}
        for place, image in enumerate(resized):
            groups.setdefault((_round_up(image.shape[0]), _round_up(image.shape[1])), []).append(place)
        found: dict[int, GridLabels] = {}
        for padded, places in groups.items():
            features = self.encode([resized[place] for place in places], padded)
            shapes = [(resized[place].shape[0], resized[place].shape[1]) for place in places]
            for place, grid in zip(places, self.pool(features, shapes, [sizes[p] for p in places]), strict=True):
                found[place] = grid
        return [found[place] for place in range(len(resized))]

    @torch.no_grad()
    def encode(self, resized: Sequence[Picture], padded: tuple[int, int]) -> Tensor:
        """The labeler's features ``(b, d, h, w)`` of pictures padded to one size, zero after normalisation.

        Raises:
            FloatingPointError: if they are not finite, which damaged weights lead to.
        """
        batch = torch.zeros(len(resized), 3, *padded, device=self.device)
        for place, image in enumerate(resized):
            pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).to(self.device)
            batch[place, :, : image.shape[0], : image.shape[1]] = (pixels - self.pixel_mean) / self.pixel_std
        features = self.encoder.pooling_features(batch, self.feature_stride).float()
        if not features.sum().isfinite():  # a sum is one pass, and NaN and Inf stay in it
            raise FloatingPointError("the encoder's features are not finite")
        return features

    @torch.no_grad()
    def pool(
        self, features: Tensor, shapes: Sequence[tuple[int, int]], sizes: Sequence[tuple[int, int]]
    ) -> list[GridLabels]:
        """UniAP on the features of pictures whose resized sides are ``shapes`` and original sides ``sizes``."""
        stride = self.feature_stride
        cells = [(-(-height // stride), -(-width // stride)) for height, width in shapes]
        grids = []
        for i, labels in enumerate(self.labeler(features, cells)):
            rows, columns = cells[i]
            picture = features[i, :, :rows, :columns]
            kinds = [kind._replace(masks=kind.masks[:, :rows, :columns]) for kind in labels]
            scores = [score_masks(kind, picture).float().cpu() for kind in kinds]
            moved = [PseudoMasks(*(value.cpu() for value in kind)) for kind in kinds]
            height, width = shapes[i]
            grids.append(
                GridLabels(PseudoLabels(*moved), (scores[0], scores[1]), (height / stride, width / stride), sizes[i])
            )
        return grids

    def to_pixels(self, grid: GridLabels, image: Picture | None = None) -> PictureLabels:
        """The masks at the picture's size; those that leave no pixel are left out.

        Args:
            grid: out of :meth:`label_grids`.
            image: the picture itself, which "edges" reads.
        """
        return PictureLabels(
            *(
                _to_set(kind, scores, self.masks_to_pixels(kind.masks, grid, image))
                for kind, scores in zip(grid.labels, grid.scores, strict=True)
            )
        )

    @property
    def reads_pictures(self) -> bool:
        """Whether going to pixels looks at the picture itself."""
        return self.upscale not in ("nearest", "bilinear")

    def masks_to_pixels(self, masks: Tensor, grid: GridLabels, image: Picture | None = None) -> NDArray[np.bool_]:
        """Some masks ``(n, rows, columns)`` of a picture at its size, ``(n, H, W)`` bool."""
        return masks_to_pixels(masks, grid.valid, grid.size, self.upscale, image).numpy()


def find_device(name: str | torch.device) -> torch.device:
    """A torch device that is there.

    Raises:
        ValueError: if torch does not know the name, or the device is not there.
    """
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"device must be one that is there, such as cpu or cuda, got {str(name)!r} ({reason})"
        ) from error
    return device


def _round_up(pixels: int) -> int:
    return -(-pixels // 32) * 32


def _to_set(kind: PseudoMasks, scores: Tensor, masks: NDArray[np.bool_]) -> MaskSet:
    areas = masks.sum(axis=(1, 2), dtype=np.int64)
    seen = areas > 0
    return MaskSet(
        masks[seen], kind.level.numpy()[seen], scores.numpy()[seen], kind.embeddings.float().numpy()[seen], areas[seen]
    )
