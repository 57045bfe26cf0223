"""Mean-field inference in a fully connected CRF over the pixels of one picture.

Axes: c classes, H and W rows and columns of the picture.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .permutohedral import PermutohedralLattice, gaussian_sum

_LEAST_PROBABILITY = 1e-5  # pydensecrf's clip


@dataclass(frozen=True)
class CRFSettings:
    """Constants of STEGO's evaluation (``src/crf.py``).

    Attributes:
        iterations: mean-field updates.
        near_weight: of the kernel over positions alone.
        near_std_px: its standard deviation.
        alike_weight: of the kernel over positions and colours.
        alike_std_px: its standard deviation in positions.
        alike_std_rgb: and in colours, 0 to 255.
    """

    iterations: int = 10
    near_weight: float = 3.0
    near_std_px: float = 1.0
    alike_weight: float = 4.0
    alike_std_px: float = 67.0
    alike_std_rgb: float = 3.0


@torch.no_grad()
def dense_crf(
    probabilities: Tensor, picture: Tensor, settings: CRFSettings | None = None, *, is_exact: bool = False
) -> Tensor:
    """Probabilities that agree between pixels that are near, or near and alike in colour.

    Source: Krähenbühl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials", NIPS
    2011, with Potts compatibility. As in their code, a pixel's own message counts and each kernel K is normalised on
    both sides, D^-1/2 K D^-1/2 with D the sums of its rows.

    The kernel of positions is exact to 1e-6. That of colours is summed over the permutohedral lattice, linear in the
    number of pixels, or exactly over all pairs (quadratic: small pictures, or a GPU).

    Args:
        probabilities: ``(c, H, W)``, at least 0, of any sum: each pixel's are divided by it.
        picture: ``(3, H, W)``, 0 to 255.
        settings: None are STEGO's.
        is_exact: whether all pairs are summed.

    Returns:
        ``(c, H, W)`` float32 that sum to 1 in each pixel.

    Raises:
        ValueError: if the picture is not of the probabilities' size.
    """
    if probabilities.dim() != 3 or picture.shape != (3, *probabilities.shape[1:]):
        raise ValueError(
            f"picture must be (3, H, W) of the probabilities' size (c, H, W), got {tuple(picture.shape)} for "
            f"{tuple(probabilities.shape)}"
        )
    constants = settings or CRFSettings()
    classes, height, width = probabilities.shape
    given = probabilities.float().clamp(min=0)
    given = given / given.sum(dim=0).clamp(min=1e-12)
    # pixels in rows, as the filters want them
    unary = given.clamp(min=_LEAST_PROBABILITY).log().reshape(classes, -1).T
    alike = _alike_kernel(picture.to(unary.device), constants, is_exact)
    near = _NearKernel(height, width, constants.near_std_px, unary.device)
    scales = [_inverse_root(kernel(unary.new_ones(len(unary), 1))) for kernel in (near, alike)]
    current = unary.softmax(dim=1)
    for _ in range(constants.iterations):
        energy = unary
        for kernel, scale, weight in zip(
            (near, alike), scales, (constants.near_weight, constants.alike_weight), strict=True
        ):
            energy = energy + weight * scale * kernel(scale * current)
        current = energy.softmax(dim=1)
    return current.T.reshape(classes, height, width)


def _inverse_root(sums: Tensor) -> Tensor:
    return (sums + 1e-20).rsqrt()


class _NearKernel:
    """Gaussian of positions, as a product of one matrix per axis."""

    def __init__(self, height: int, width: int, std_px: float, device: torch.device) -> None:
        self._rows, self._columns = (self._matrix(length, std_px, device) for length in (height, width))

    @staticmethod
    def _matrix(length: int, std_px: float, device: torch.device) -> Tensor:
        positions = torch.arange(length, device=device, dtype=torch.float32) / std_px
        return torch.exp((positions[:, None] - positions).square() / -2)

    def __call__(self, values: Tensor) -> Tensor:
        height, width = len(self._rows), len(self._columns)
        planes = values.T.reshape(-1, height, width)
        return (self._rows @ planes @ self._columns).reshape(-1, height * width).T


class _AllPairs:
    def __init__(self, points: Tensor) -> None:
        self._points = points

    def __call__(self, values: Tensor) -> Tensor:
        return gaussian_sum(self._points, values)


def _alike_kernel(picture: Tensor, constants: CRFSettings, is_exact: bool) -> _AllPairs | PermutohedralLattice:
    height, width = picture.shape[1:]
    rows = torch.arange(height, device=picture.device, dtype=torch.float32) / constants.alike_std_px
    columns = torch.arange(width, device=picture.device, dtype=torch.float32) / constants.alike_std_px
    colours = picture.float() / constants.alike_std_rgb
    places = torch.stack(torch.meshgrid(rows, columns, indexing="ij"))
    points = torch.cat([places, colours]).reshape(5, -1).T.contiguous()
    return _AllPairs(points) if is_exact else PermutohedralLattice(points)
