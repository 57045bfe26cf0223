"""S2-UniSeg as a Detectron2 meta-architecture."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone, build_sem_seg_head
from detectron2.structures import ImageList
from torch import Tensor, nn

from s2uniseg_d2.core.labelers.base import Labeler
from s2uniseg_d2.core.losses.dino_head import DINOHead
from s2uniseg_d2.core.losses.mask_losses import mask_losses
from s2uniseg_d2.core.losses.matching import MatchingProblem, match_masks
from s2uniseg_d2.core.losses.objectness import objectness_loss
from s2uniseg_d2.core.losses.point_draws import KeyedPoints
from s2uniseg_d2.core.losses.query_distillation import Center, query_distillation_loss
from s2uniseg_d2.core.momentum import copy_to_teacher, update_teacher
from s2uniseg_d2.core.observer import StepObserver
from s2uniseg_d2.core.ops.transfer import to_device
from s2uniseg_d2.core.structures import Match, PseudoLabels, QueryPrediction, TargetMasks

from .backbone import ViTAdapterBackbone
from .batches import places_by_padding, view_keys
from .head import QueryGroupHead
from .labelers import RegionVote, build_uniap, embed_labels, enlarge
from .normalizers import Normalizers, count_normalizers
from .observation import observe_distillation, observe_group
from .prediction import PredictionSettings, predict_from_labels, predict_from_queries
from .targets import ViewTargets, crop_labels_to_views

# query group -> which of the teacher's masks it learns
GROUPS = {"ins": "instance", "sem": "semantic"}


@META_ARCH_REGISTRY.register()
class S2UniSeg(nn.Module):
    """A student that learns the masks and the query embeddings of its momentum teacher.

    Source: Figure 2 of the paper. The teacher (``teacher_backbone``, ``teacher_head``) lives in the model, so that
    checkpoints and evaluation hold it; it has no gradient and is always in evaluation mode. The paper is silent on
    how 256-wide student queries meet ViT-wide teacher queries: the student has one linear map ``query_proj`` before
    its head, so that both heads are alike and the teacher's can follow the student's.

    Args:
        backbone: the student's encoder.
        sem_seg_head: the decoder with its query groups.
        labeler: makes masks from the teacher's features.
        distillation_head: projection head of the student; the teacher's is a copy.
        query_dim: width of the decoder's queries.
        embed_dim: width of the encoder's features and of the teacher's queries.
        center: the running centre of teacher logits.
        feature_stride: of the map that the labeler reads, 4 or 16.
        temperatures: of student and teacher in QuerySD.
        loss_weights: ``query_sd``, ``mask``, ``dice`` and ``objectness``.
        no_object_weight: weight of unmatched queries in the objectness loss.
        deep_supervision: whether all decoder layers are trained, or the last alone.
        learned_kinds: ``instance``, ``semantic`` or both; the queries of a kind left out learn "no object".
        min_cells: smallest mask in a view, in cells of the stride-4 grid.
        point_sampling: ``num_points``, ``oversample_ratio`` and ``importance_ratio`` of the mask losses.
        prediction: settings of the inference.
        pixel_mean: per channel, RGB, 0 to 255.
        pixel_std: per channel.
        seed: of the mask losses' points, 0 or more; with a picture's ``draw``, its place in the training stream, it
            decides those of its views.
        region_vote: makes the embeddings of offline labels.
        pictures_at_once: most pictures that the teacher labels in one go; 0 sets no limit.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    @configurable
    def __init__(
        self,
        *,
        backbone: ViTAdapterBackbone,
        sem_seg_head: QueryGroupHead,
        labeler: Labeler,
        distillation_head: DINOHead,
        query_dim: int,
        embed_dim: int,
        center: Center,
        feature_stride: int,
        temperatures: tuple[float, float],
        loss_weights: Mapping[str, float],
        no_object_weight: float,
        deep_supervision: bool,
        learned_kinds: Sequence[str],
        min_cells: int,
        point_sampling: Mapping[str, Any],
        prediction: PredictionSettings,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        seed: int,
        region_vote: RegionVote,
        pictures_at_once: int = 0,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.sem_seg_head = sem_seg_head
        self.query_proj = nn.Linear(query_dim, embed_dim)
        self.student_head = distillation_head
        self.teacher_backbone = copy.deepcopy(backbone).requires_grad_(False).eval()
        self.teacher_head = copy.deepcopy(distillation_head).requires_grad_(False).eval()
        self.center = center
        self.labeler = labeler
        self.feature_stride = feature_stride
        self.student_temp, self.teacher_temp = temperatures
        self.loss_weights = dict(loss_weights)
        self.no_object_weight = no_object_weight
        self.deep_supervision = deep_supervision
        self.learned_kinds = tuple(learned_kinds)
        self.min_cells = min_cells
        self.point_sampling = dict(point_sampling)
        self.prediction = prediction
        self.seed = seed
        self.region_vote = region_vote
        self.pictures_at_once = pictures_at_once
        self.observer = StepObserver()
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Read the ``MODEL`` node."""
        backbone = build_backbone(cfg)
        shape = backbone.output_shape()
        embed_dim = shape["res2"].channels
        distillation, loss = cfg.MODEL.QUERY_SD, cfg.MODEL.LOSS
        return {
            "backbone": backbone,
            "sem_seg_head": build_sem_seg_head(cfg, shape),
            "labeler": build_uniap(cfg),
            "distillation_head": DINOHead(
                embed_dim,
                hidden_dim=distillation.HIDDEN_DIM,
                bottleneck_dim=distillation.BOTTLENECK_DIM,
                num_prototypes=distillation.NUM_PROTOTYPES,
            ),
            "query_dim": cfg.MODEL.QUERY_HEAD.HIDDEN_DIM,
            "embed_dim": embed_dim,
            "center": Center(distillation.NUM_PROTOTYPES, momentum=distillation.CENTER_MOMENTUM),
            "feature_stride": cfg.MODEL.UNIAP.FEATURE_STRIDE,
            "temperatures": (distillation.STUDENT_TEMP, distillation.TEACHER_TEMP),
            "loss_weights": {
                "query_sd": loss.QUERY_SD_WEIGHT,
                "mask": loss.MASK_WEIGHT,
                "dice": loss.DICE_WEIGHT,
                "objectness": loss.OBJECTNESS_WEIGHT,
            },
            "no_object_weight": loss.NO_OBJECT_WEIGHT,
            "deep_supervision": loss.DEEP_SUPERVISION,
            "learned_kinds": tuple(loss.KINDS),
            "min_cells": loss.MIN_CELLS,
            "point_sampling": {
                "num_points": loss.NUM_POINTS,
                "oversample_ratio": loss.OVERSAMPLE_RATIO,
                "importance_ratio": loss.IMPORTANCE_RATIO,
            },
            "prediction": PredictionSettings.from_config(cfg),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "seed": max(cfg.SEED, 0),
            "region_vote": RegionVote(cfg.MODEL.UNIAP.SIGMA, cfg.MODEL.UNIAP.REGION_AFFINITY),
            "pictures_at_once": cfg.MODEL.TEACHER.PICTURES_AT_ONCE,
        }

    @property
    def device(self) -> torch.device:
        """Where the model lives; Detectron2 asks for it."""
        return self.pixel_mean.device

    def train(self, mode: bool = True) -> S2UniSeg:
        """Switch the student; the teacher stays in evaluation mode."""
        super().train(mode)
        self.teacher_backbone.eval()
        self.teacher_head.eval()
        return self

    def copy_student_to_teacher(self) -> None:
        """Make the teacher an exact copy of the student's encoder and head."""
        copy_to_teacher(self.backbone, self.teacher_backbone)
        copy_to_teacher(self.student_head, self.teacher_head)

    def update_teacher(self, momentum: float) -> None:
        """Move encoder and head of the teacher towards the student: ``m * teacher + (1 - m) * student``."""
        update_teacher(self.teacher_backbone, self.backbone, momentum)
        update_teacher(self.teacher_head, self.student_head, momentum)

    @torch.no_grad()
    def label(self, batch: Sequence[Mapping[str, Any]]) -> list[PseudoLabels]:
        """The teacher's instance and semantic masks of every picture, at stride 4 of the global view."""
        labels: dict[int, PseudoLabels] = {}
        for places in places_by_padding(batch, self.backbone.size_divisibility, self.pictures_at_once):
            images = self._prepare([batch[place]["image"] for place in places])
            labels.update(zip(places, self._label_pictures(images)[1], strict=True))
        return [labels[place] for place in range(len(batch))]

    @torch.no_grad()
    def embed(self, batch: Sequence[Mapping[str, Any]]) -> list[PseudoLabels]:
        """The masks that every picture brings under ``pseudo``, with the teacher's embeddings of them (Eq. 5)."""
        labels: dict[int, PseudoLabels] = {}
        for places in places_by_padding(batch, self.backbone.size_divisibility, self.pictures_at_once):
            features, sizes = self._pool_features(self._prepare([batch[place]["image"] for place in places]))
            for place, tokens, (rows, columns) in zip(places, features, sizes, strict=True):
                labels[place] = embed_labels(
                    batch[place]["pseudo"], tokens[:, :rows, :columns], self.feature_stride // 4, self.region_vote
                )
        return [labels[place] for place in range(len(batch))]

    def count_normalizers(self, batch: Sequence[Mapping[str, Any]]) -> Normalizers:
        """The divisors of the losses of a whole batch, for ``forward`` on its parts; every rank must call."""
        return self._normalizers(self.crop_targets(batch))

    def forward(
        self, batch: Sequence[Mapping[str, Any]], normalizers: Normalizers | None = None, *, is_last: bool = True
    ) -> dict[str, Tensor] | list[dict[str, Any]]:
        """Losses of a training batch, or predictions when the model is in evaluation mode.

        The losses of the parts of a batch add up to those of the whole, and the mean of the ranks' losses is what one
        process would have for all their pictures; only batch statistics are those of what is seen at once.

        Args:
            batch: items of the mapper, with ``pseudo`` labels in training.
            normalizers: of the batch that this one is a part of; None: this is the whole.
            is_last: whether no further part follows; the centre moves then.

        Raises:
            ValueError: if a training item holds no pseudo-labels.
        """
        if not self.training:
            return self.predict(batch)
        views = to_device(torch.cat([item["views"] for item in batch]), self.device)
        # first, for it looks at the device once, which has nothing of the student's queued yet that would be waited for
        targets = self.crop_targets(batch)
        normalizers = normalizers or self._normalizers(targets)
        self.observer.lap("targets")
        predictions = self.student_pass(views)
        self.observer.lap("student")
        trained = predictions if self.deep_supervision else predictions[-1:]
        outputs: dict[str, tuple[str, QueryPrediction]] = {}
        problems: dict[str, MatchingProblem] = {}
        for group in GROUPS:
            for layer, prediction in enumerate(trained):
                suffix = group if prediction is predictions[-1] else f"{group}_{layer}"
                own = QueryPrediction(*(value[:, self.sem_seg_head.slices[group]] for value in prediction))
                outputs[suffix] = group, own
                problems[suffix] = MatchingProblem(own.masks, targets[group].masks)
        matches = match_masks(problems)
        self.observer.lap("matching")

        losses: dict[str, Tensor] = {}
        points = KeyedPoints(view_keys(batch, self.seed, self.device))
        for number, (suffix, (group, prediction)) in enumerate(outputs.items()):
            losses |= self._supervise(
                suffix,
                prediction,
                targets[group].masks,
                matches[suffix],
                points=points.at(number),
                divisors=(normalizers.pairs[group], normalizers.weights[group]),
            )
        for group in (group for group, kind in GROUPS.items() if kind in self.learned_kinds):
            observe_group(self.observer, group, outputs[group][1], targets[group].masks, matches[group])
        # QuerySD takes the last layer's pairs
        student_queries = [outputs[group][1].queries[matches[group].image, matches[group].query] for group in GROUPS]
        teacher_queries = [targets[group].matched_embeddings(matches[group]) for group in GROUPS]
        losses["loss_query_sd"] = self._distil(
            torch.cat(student_queries), torch.cat(teacher_queries), normalizers.all_pairs, is_last=is_last
        )
        self.observer.lap("losses")
        return losses

    def student_pass(self, views: Tensor) -> tuple[QueryPrediction, ...]:
        """The student's predictions for ``(b, 3, h, w)`` views; what ``compile_student`` replaces."""
        return self.sem_seg_head(self.backbone((views - self.pixel_mean) / self.pixel_std))

    def crop_targets(self, batch: Sequence[Mapping[str, Any]]) -> dict[str, ViewTargets]:
        """What each query group should find in the views."""
        rows, columns = (side // 4 for side in batch[0]["views"].shape[-2:])
        targets = crop_labels_to_views(
            batch, (rows, columns), self.device, kinds=self.learned_kinds, min_cells=self.min_cells
        )
        return {group: targets[kind] for group, kind in GROUPS.items()}

    def _normalizers(self, targets: Mapping[str, ViewTargets]) -> Normalizers:
        slices = self.sem_seg_head.slices
        return count_normalizers(
            {group: target.masks for group, target in targets.items()},
            {group: slices[group].stop - slices[group].start for group in targets},
            self.no_object_weight,
            self.device,
        )

    def _supervise(
        self,
        suffix: str,
        prediction: QueryPrediction,
        targets: TargetMasks,
        match: Match,
        *,
        points: KeyedPoints,
        divisors: tuple[Tensor, Tensor],
    ) -> dict[str, Tensor]:
        """Weighted mask, Dice and objectness losses of one group after one decoder layer."""
        pairs, weight = divisors
        losses = mask_losses(prediction.masks, targets, match, normalizer=pairs, points=points, **self.point_sampling)
        losses["objectness"] = objectness_loss(prediction.objectness, match, self.no_object_weight, normalizer=weight)
        return {f"loss_{name}_{suffix}": self.loss_weights[name] * loss for name, loss in losses.items()}

    def _distil(self, student_queries: Tensor, teacher_queries: Tensor, pairs: Tensor, *, is_last: bool) -> Tensor:
        """QuerySD (Eq. 6) over all matched pairs of both groups; the centre follows afterwards."""
        with torch.no_grad():
            teacher_logits = self.teacher_head(teacher_queries)
        logits = self.student_head(self.query_proj(student_queries)), teacher_logits, self.center.center
        observe_distillation(self.observer, *logits, (self.student_temp, self.teacher_temp))
        loss = query_distillation_loss(
            *logits, student_temp=self.student_temp, teacher_temp=self.teacher_temp, normalizer=pairs
        )
        self.center.update(teacher_logits, is_last=is_last)
        return self.loss_weights["query_sd"] * loss

    @torch.no_grad()
    def predict(self, batch: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Instances, semantic pseudo-classes and panoptic segments of every picture, at its original size.

        Source: "the final teacher encoder with the mask decoder is used for inference". With the ``uniap`` predictor
        the teacher's own masks are the predictions.
        """
        images = self._prepare([item["image"] for item in batch])
        sizes = [
            (int(item.get("height", size[0])), int(item.get("width", size[1])))
            for item, size in zip(batch, images.image_sizes, strict=True)
        ]
        padded = (images.tensor.shape[-2], images.tensor.shape[-1])
        if self.prediction.predictor == "uniap":
            features, labels = self._label_pictures(images)
            return [
                predict_from_labels(
                    picture_labels,
                    picture_features,
                    lambda embeddings: (self.teacher_head(embeddings) - self.center.center).argmax(dim=-1),
                    top_k=self.prediction.top_k,
                    image_size=image_size,
                    output_size=size,
                    duplicate_iou=self.prediction.duplicate_iou,
                )
                for picture_labels, picture_features, image_size, size in zip(
                    labels, features, images.image_sizes, sizes, strict=True
                )
            ]
        final = self.sem_seg_head(self.teacher_backbone(images.tensor))[-1]
        classes = self.teacher_head(self.query_proj(final.queries)).argmax(dim=-1)
        return [
            predict_from_queries(
                QueryPrediction(*(value[i] for value in final)),
                classes[i],
                self.sem_seg_head.slices,
                self.prediction,
                padded_size=padded,
                image_size=images.image_sizes[i],
                output_size=sizes[i],
            )
            for i in range(len(batch))
        ]

    def _prepare(self, pictures: Sequence[Tensor]) -> ImageList:
        """Normalised pictures, padded at the right and bottom to common sides that are multiples of 32."""
        normalised = [(to_device(picture, self.device) - self.pixel_mean) / self.pixel_std for picture in pictures]
        return ImageList.from_tensors(normalised, self.backbone.size_divisibility)

    def _label_pictures(self, images: ImageList) -> tuple[list[Tensor], list[PseudoLabels]]:
        """UniAP's features and masks on the stride-4 grid of every picture, padding excluded."""
        features, sizes = self._pool_features(images)
        self.observer.lap("teacher")
        labels = self.labeler(features, sizes)
        stride, pictures, cut = self.feature_stride, [], []
        for i, (rows, columns) in enumerate(sizes):
            height, width = (-(-side // 4) for side in images.image_sizes[i])
            pictures.append(enlarge(features[i, :, :rows, :columns], stride // 4, height, width))
            kinds = [
                kind._replace(masks=enlarge(kind.masks[:, :rows, :columns], stride // 4, height, width))
                for kind in labels[i]
            ]
            cut.append(PseudoLabels(*kinds))
        self.observer.lap("labels")
        return pictures, cut

    def _pool_features(self, images: ImageList) -> tuple[Tensor, list[tuple[int, int]]]:
        """The teacher's token maps ``(b, d, h, w)`` and the rows and columns of each that are no padding."""
        stride = self.feature_stride
        features = self.teacher_backbone.pooling_features(images.tensor, stride).float()
        if not features.isfinite().all():
            raise FloatingPointError("the teacher's features are not finite")
        return features, [(-(-height // stride), -(-width // stride)) for height, width in images.image_sizes]
