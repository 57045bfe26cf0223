"""From a record of a data set to what the model takes."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.utils import comm

from .augmentation import Crop, choose_reduction, cut_view, draw_crop, jitter_view, resize_longest
from .center_crop import CenterCrop
from .offline_labels import OfflineLabelReader
from .pictures import Picture, PictureError, StoredPicture, UnreadablePictureError, read_picture
from .unreadable import UnreadablePictures


class MultiViewMapper:
    """Maps a record to the teacher's global view and the student's local views; returns None for unreadable pictures.

    The global view is the whole picture, resized and otherwise unchanged (Section 3, "original image"). The local views
    are random resized crops of the original picture, mirrored at random, and changed in colour and sharpness. A large
    JPEG is reduced while it is decoded, as far as neither the global view nor a local one is then enlarged; boxes lie
    on whole pixels of the reduced picture and stay exact.

    The returned dict holds ``image`` uint8 ``(3, H, W)``; ``views`` uint8 ``(num_views, 3, view_px, view_px)``;
    ``boxes`` float32 ``(num_views, 4)``, XYXY in pixels of the global view; ``flips`` bool ``(num_views,)``; ``height``
    and ``width`` of the original picture; ``file_name``; ``image_id`` where the record has one; ``draw``. With
    ``offline_labels`` the annotations of the record are its labels, ``pseudo`` as :class:`OfflineLabelReader` makes it,
    beside ``dropped_masks``; otherwise they are not read.

    The paper is silent on sizes, scale range and photometric changes: 512 and 224 pixels, DINO's (0.05, 0.4) and DINO's
    recipe for local crops are taken.

    Randomness: the draws of a sample are a function of ``seed``, the file's name and the record's ``draw``, the
    sample's place in the training stream that :func:`build_train_loader` writes into it, and so do not depend on the
    number of workers or processes. Without ``draw`` this mapper counts its own calls.

    An unreadable picture is logged once and skipped by returning None; ``build_train_loader`` puts another picture in
    its place.

    Args:
        global_longest_px: longer side of the global view.
        view_px: side of a local view, a multiple of 32.
        num_views: the paper's delta.
        view_scale: area of a local view as share of the picture's, lowest and highest.
        view_ratio: width / height of a local view before resizing, lowest and highest.
        flip_prob: probability of mirroring a local view.
        photometric: whether colours and sharpness of local views change.
        seed: of all draws.
        max_unreadable: how many different files one process may skip.
        offline_labels: reads the annotations; None leaves the labels to the teacher.

    Raises:
        ValueError: if an argument is out of range.
    """

    @configurable
    def __init__(
        self,
        *,
        global_longest_px: int = 512,
        view_px: int = 224,
        num_views: int = 2,
        view_scale: tuple[float, float] = (0.05, 0.4),
        view_ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip_prob: float = 0.5,
        photometric: bool = True,
        seed: int = 0,
        max_unreadable: int = 100,
        offline_labels: OfflineLabelReader | None = None,
    ) -> None:
        if global_longest_px < 1:
            raise ValueError(f"global_longest_px must be at least 1, got {global_longest_px}")
        if view_px < 32 or view_px % 32:
            raise ValueError(f"view_px must be a positive multiple of 32, got {view_px}")
        if num_views < 1:
            raise ValueError(f"num_views must be at least 1, got {num_views}")
        if not 0 < view_scale[0] <= view_scale[1] <= 1:
            raise ValueError(f"view_scale must be (low, high) with 0 < low <= high <= 1, got {tuple(view_scale)}")
        if not 0 < view_ratio[0] <= view_ratio[1]:
            raise ValueError(f"view_ratio must be (low, high) with 0 < low <= high, got {tuple(view_ratio)}")
        if not 0 <= flip_prob <= 1:
            raise ValueError(f"flip_prob must lie in [0, 1], got {flip_prob}")
        if max_unreadable < 0:
            raise ValueError(f"max_unreadable must not be negative, got {max_unreadable}")
        if seed < 0:
            raise ValueError(f"seed must not be negative, got {seed}")
        self.global_longest_px = global_longest_px
        self.view_px = view_px
        self.num_views = num_views
        self.view_scale = (view_scale[0], view_scale[1])
        self.view_ratio = (view_ratio[0], view_ratio[1])
        self.flip_prob = flip_prob
        self.photometric = photometric
        self.seed = seed
        self.unreadable = UnreadablePictures(max_unreadable)
        self.offline_labels = offline_labels
        self._calls = 0

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Read ``INPUT``, ``SEED`` and, for offline labels, ``MODEL.UNIAP``.

        A negative seed means one drawn anew, shared by all processes.

        Raises:
            ValueError: if ``is_train`` is false: there are no views at inference.
        """
        if not is_train:
            raise ValueError("MultiViewMapper is for training (is_train=True); InferenceMapper is for evaluation")
        views, uniap = cfg.INPUT.VIEWS, cfg.MODEL.UNIAP
        return {
            "global_longest_px": cfg.INPUT.GLOBAL_LONGEST_PX,
            "view_px": views.SIZE_PX,
            "num_views": views.NUM,
            "view_scale": tuple(views.SCALE),
            "view_ratio": tuple(views.RATIO),
            "flip_prob": views.FLIP_PROB,
            "photometric": views.PHOTOMETRIC,
            "seed": cfg.SEED if cfg.SEED >= 0 else int(comm.shared_random_seed()),
            "max_unreadable": cfg.INPUT.MAX_UNREADABLE,
            "offline_labels": OfflineLabelReader(min_tokens=uniap.MIN_TOKENS, feature_stride=uniap.FEATURE_STRIDE)
            if cfg.INPUT.OFFLINE_LABELS
            else None,
        }

    def __call__(self, dataset_dict: Mapping[str, Any]) -> dict[str, Any] | None:
        """Map one record with ``file_name``, and perhaps ``span``, ``image_id``, ``draw`` and ``annotations``.

        Raises:
            TooManyUnreadableError: if too many pictures were unreadable.
            PictureError: if the picture has not the size that its offline labels are made for.
        """
        path = str(dataset_dict["file_name"])
        draw = dataset_dict.get("draw", self._calls)
        self._calls += 1
        if path in self.unreadable:
            self.unreadable.skip_again(path)
            return None
        rng = np.random.default_rng([self.seed, zlib.crc32(Path(path).name.encode()), draw])
        try:
            stored = StoredPicture(path, dataset_dict.get("span"))
            picture, crops = self._read(stored, rng)
        except UnreadablePictureError as error:
            self.unreadable.skip(path, error)
            return None
        self.unreadable.saw_readable()
        item = self._map_picture(picture, crops, rng) | _identity(dataset_dict)
        item |= {"height": stored.height, "width": stored.width, "draw": draw}
        if self.offline_labels is not None:
            rows, columns = item["image"].shape[1:]
            found = self.offline_labels(dataset_dict, (item["height"], item["width"]), (rows, columns))
            item |= {"pseudo": found.labels, "dropped_masks": found.dropped}
        return item

    def _read(self, stored: StoredPicture, rng: np.random.Generator) -> tuple[Picture, list[Crop]]:
        """The picture, reduced where no view needs all of its pixels, and the crops of it."""
        height, width = stored.height, stored.width
        crops = [draw_crop(height, width, self.view_scale, self.view_ratio, rng) for _ in range(self.num_views)]
        reduction = choose_reduction(
            height,
            width,
            crops,
            longest_px=self.global_longest_px,
            view_px=self.view_px,
            reductions=stored.reductions,
        )
        return stored.read(reduction), [crop.reduce(reduction) for crop in crops]

    def _map_picture(self, picture: Picture, crops: list[Crop], rng: np.random.Generator) -> dict[str, Any]:
        height, width = picture.shape[:2]
        whole = resize_longest(picture, self.global_longest_px)
        flips = rng.random(self.num_views) < self.flip_prob
        views = [self._cut(picture, crop, bool(flip), rng) for crop, flip in zip(crops, flips, strict=True)]
        to_global = np.array([whole.shape[1] / width, whole.shape[0] / height] * 2)
        return {
            "image": _to_tensor(whole),
            "views": torch.stack([_to_tensor(view) for view in views]),
            "boxes": torch.from_numpy((np.array(crops) * to_global).astype(np.float32)),
            "flips": torch.from_numpy(flips),
        }

    def _cut(self, picture: Picture, crop: Crop, is_flipped: bool, rng: np.random.Generator) -> Picture:
        view = cut_view(picture, crop, self.view_px, is_flipped=is_flipped)
        return jitter_view(view, rng) if self.photometric else view


class InferenceMapper:
    """Maps a record to the whole picture, or to its crop, resized.

    The returned dict holds ``image`` uint8 ``(3, H, W)``, its longer side ``longest_px``; ``height`` and ``width`` of
    the original picture or of the crop, in which predictions are wanted; ``file_name``; ``image_id`` where the record
    has one.

    Args:
        longest_px: longer side of the picture that the model sees.
        crop: cuts the picture first; None leaves it whole.

    Raises:
        ValueError: if ``longest_px`` is below 1.
    """

    @configurable
    def __init__(self, *, longest_px: int = 1024, crop: CenterCrop | None = None) -> None:
        if longest_px < 1:
            raise ValueError(f"longest_px must be at least 1, got {longest_px}")
        self.longest_px = longest_px
        self.crop = crop

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Read ``INPUT.TEST_LONGEST_PX``."""
        return {"longest_px": cfg.INPUT.TEST_LONGEST_PX}

    def __call__(self, dataset_dict: Mapping[str, Any]) -> dict[str, Any]:
        """Map one record; a picture that cannot be read is an error, for skipping it would falsify the figures.

        Raises:
            UnreadablePictureError: if the file is not a sound picture.
            PictureError: if the picture has not the size that the record says, which the truth refers to.
        """
        path = str(dataset_dict["file_name"])
        picture = read_picture(path, dataset_dict.get("span"))
        height, width = picture.shape[:2]
        expected = (dataset_dict.get("height", height), dataset_dict.get("width", width))
        if expected != (height, width):
            raise PictureError(
                f"picture {path} is {width} x {height} (EXIF rotation applied), but its annotations are made for "
                f"{expected[1]} x {expected[0]}"
            )
        if self.crop is not None:
            picture = self.crop(picture)
            height, width = picture.shape[:2]
        image = _to_tensor(resize_longest(picture, self.longest_px))
        return {"image": image, "height": height, "width": width} | _identity(dataset_dict)


def _identity(dataset_dict: Mapping[str, Any]) -> dict[str, Any]:
    return {key: dataset_dict[key] for key in ("file_name", "image_id") if key in dataset_dict}


def _to_tensor(picture: Picture) -> torch.Tensor:
    return torch.from_numpy(np.stack(cv2.split(picture)))
