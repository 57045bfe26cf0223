"""mIoU of semantic masks that carry no class: their embeddings are grouped over the data set, groups become classes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from s2uniseg_d2.core.assignment import UNMATCHED
from s2uniseg_d2.core.clustering import spherical_kmeans
from s2uniseg_d2.evaluation.class_mapping import DEFAULT_STRATEGIES, fit_mappings
from s2uniseg_d2.evaluation.semantic import semantic_quality

Integers = NDArray[np.int64]


class _Counts(NamedTuple):
    """Pixels by mask and true class where the masks up to one level lie over each other, one entry per pair.

    Attributes:
        mask: number of the mask among all of the data set; -1 for pixels without one.
        label: true class; C for pixels without truth.
        pixels: how many.
    """

    mask: Integers
    label: Integers
    pixels: Integers


class SemanticScore:
    """Collects the semantic masks of a data set and compares them with its classes.

    The paper is silent on how masks become classes across pictures in its Table 1. Here each pixel belongs to the
    coarsest semantic mask on it, as everywhere in this system; the embeddings of the masks that show are grouped by
    seeded spherical k-means, each by the number of its pixels; and the groups are mapped to classes on the very data
    set, by the one-to-one assignment (STEGO's protocol) and by majority (U2Seg's). No picture is cropped and no CRF
    refines an outline. Pixels without truth count nowhere; pixels with truth and without a mask are wrong.

    A mapping that is fitted on few masks remembers them, whatever their embeddings say: the same figures with the
    embeddings shuffled among the masks tell how much of a result is that.

    Memory: an embedding in float16 for every mask that shows, and some integers.

    Args:
        classes: names of the C classes.
        num_clusters: number of groups; None takes as many as the truth holds classes, STEGO's rule.
        seed: of k-means.
        device: where k-means runs.

    Raises:
        ValueError: if there is no class or ``num_clusters`` is below 1.
    """

    def __init__(
        self,
        classes: Sequence[str],
        *,
        num_clusters: int | None = None,
        seed: int = 0,
        device: str | torch.device = "cpu",
    ) -> None:
        if not classes:
            raise ValueError("classes must name at least one, got none")
        self.classes = tuple(classes)
        if num_clusters is not None and num_clusters < 1:
            raise ValueError(f"num_clusters must be at least 1, got {num_clusters}")
        self._num_clusters = num_clusters
        self.seed = seed
        self.device = device
        self._embeddings: list[Tensor] = []
        self._num_masks = 0
        self._pictures: list[list[_Counts]] = []
        self._held: set[int] = set()

    @property
    def num_clusters(self) -> int:
        """Number of groups for the pictures so far."""
        return self._num_clusters or max(1, len(self._held))

    def add(self, masks: Iterable[NDArray[np.bool_]], levels: Integers, embeddings: Tensor, truth: Integers) -> None:
        """Take one picture.

        Args:
            masks: n masks ``(H, W)``, fine to coarse; read one after the other and not kept.
            levels: ``(n,)`` 0-based layer of each, not decreasing.
            embeddings: ``(n, d)``.
            truth: ``(H, W)`` class of each pixel, C where there is none.

        Raises:
            ValueError: if the levels decrease.
        """
        if (np.diff(levels) < 0).any():
            raise ValueError(f"levels must not decrease, got {levels.tolist()}")
        self._held.update(set(np.unique(truth).tolist()) - {len(self.classes)})
        masks = iter(masks)
        owner = np.full(truth.shape, -1, dtype=np.int64)
        found: list[_Counts] = []
        last = int(levels[-1]) if len(levels) else 0
        for level in range(last + 1):
            chosen = np.flatnonzero(levels == level)
            for index, mask in zip(chosen.tolist(), masks, strict=False):
                owner[mask] = index
            found.append(self._count(owner, truth) if len(chosen) or not found else found[-1])
        shown = np.unique(np.concatenate([counts.mask for counts in found]))
        shown = shown[shown >= 0]
        # numbers among all masks of the data set; the last entry serves the pixels without one
        number = np.full(len(levels) + 1, -1, dtype=np.int64)
        number[shown] = self._num_masks + np.arange(len(shown))
        self._embeddings.append(embeddings[torch.from_numpy(shown)].half())
        self._num_masks += len(shown)
        self._pictures.append([counts._replace(mask=number[counts.mask]) for counts in found])

    def _count(self, owner: Integers, truth: Integers) -> _Counts:
        columns = len(self.classes) + 1
        table = np.bincount(((owner + 1) * columns + truth).ravel())
        pairs = np.flatnonzero(table)
        return _Counts(pairs // columns - 1, pairs % columns, table[pairs])

    def figures(self, split: str) -> dict[str, float]:
        """``mIoU_<strategy>`` and ``PixelAcc_<strategy>`` in percent; the same ``_shuffled``, and of single levels.

        ``mIoU_hungarian-level_2`` takes the masks of the levels 0 to 2, so that the coarsest level's figure is the
        plain one; which level suits a data set only its truth tells, so the best of them is no fair result. Truth
        without a pixel gives nan.

        Args:
            split: whose truth the mapping is fitted on: this data set's name.
        """
        levels = max((len(found) for found in self._pictures), default=1)
        results = self._figures(split, "", levels - 1, is_shuffled=False)
        results |= self._figures(split, "_shuffled", levels - 1, is_shuffled=True)
        for level in range(levels):
            results |= self._figures(split, f"-level_{level}", level, is_shuffled=False)
        return results

    def _figures(self, split: str, suffix: str, level: int, *, is_shuffled: bool) -> dict[str, float]:
        counts, results = self._cluster_counts(level, is_shuffled), {}
        for mapping in fit_mappings(counts[:-1], DEFAULT_STRATEGIES, split, self.classes):
            confusion = np.zeros((len(self.classes) + 1, len(self.classes)), dtype=np.int64)
            np.add.at(confusion, np.append(mapping.assignment, UNMATCHED), counts)  # row -1 is the last, "no class"
            quality = semantic_quality(confusion)
            results[f"mIoU_{mapping.name}{suffix}"] = 100 * quality.mean_iou
            results[f"PixelAcc_{mapping.name}{suffix}"] = 100 * quality.pixel_accuracy
        return results

    def _cluster_counts(self, level: int, is_shuffled: bool) -> Integers:
        """``(K + 1, C)`` pixels by group of masks and true class, the last row for pixels without a mask."""
        parts = [found[min(level, len(found) - 1)] for found in self._pictures]
        mask, label, pixels = (
            np.concatenate([np.zeros(0, dtype=np.int64), *(part[field] for part in parts)]) for field in range(3)
        )
        weights = np.zeros(self._num_masks + 1)
        np.add.at(weights, mask, pixels)  # pixels without a mask go to the last
        shown = np.flatnonzero(weights[:-1])
        group = np.full(self._num_masks + 1, self.num_clusters, dtype=np.int64)
        if len(shown):
            order = np.random.default_rng(self.seed).permutation(shown) if is_shuffled else shown
            rows = torch.cat(self._embeddings)[torch.from_numpy(order)].to(self.device).float()
            clusters = spherical_kmeans(
                rows,
                self.num_clusters,
                weights=torch.from_numpy(weights[shown]).to(self.device),
                seed=self.seed,
            )
            group[shown] = clusters.labels.cpu().numpy()
        counts = np.zeros((self.num_clusters + 1, len(self.classes) + 1), dtype=np.int64)
        np.add.at(counts, (group[mask], label), pixels)
        return counts[:, :-1]
