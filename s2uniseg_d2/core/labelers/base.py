"""What every pseudo-mask maker looks like to the rest of the system."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from s2uniseg_d2.core.structures import PseudoLabels


class Labeler(Protocol):
    """Feature maps in, pseudo-masks with embeddings out; no parameters, no gradient, no randomness."""

    def __call__(self, features: Tensor, sizes: Sequence[tuple[int, int]] | None = None) -> list[PseudoLabels]:
        """Return the pseudo-masks of every picture of a batch.

        Args:
            features: ``(b, d, h, w)`` float token maps.
            sizes: valid (rows, columns) of every picture, counted from the top left corner; the rest is padding.
                None: everything is valid.

        Returns:
            One :class:`PseudoLabels` per picture, masks on the full ``(h, w)`` grid and False in the padding.
        """
        ...
