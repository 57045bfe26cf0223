"""Multi-scale deformable attention in plain PyTorch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


class MSDeformAttn(nn.Module):
    """Each query reads a few bilinear samples around its reference point in every level of a value map.

    Source: Deformable DETR (arXiv 2010.04159), Eq. 3; parameter names are those of its published checkpoints, which
    Mask2Former and ViT-Adapter share.

    Args:
        dim: channels of queries and values.
        num_levels: value maps that each query reads.
        num_heads: attention heads.
        num_points: samples per head and level.
        value_ratio: width of the values relative to ``dim`` (ViT-Adapter's ``deform_ratio``).

    Raises:
        ValueError: if ``int(dim * value_ratio)`` is not a multiple of ``num_heads``.
    """

    def __init__(
        self, dim: int, *, num_levels: int, num_heads: int, num_points: int = 4, value_ratio: float = 1.0
    ) -> None:
        super().__init__()
        value_dim = int(dim * value_ratio)
        if value_dim <= 0 or value_dim % num_heads:
            raise ValueError(
                f"num_heads must divide the value width dim * value_ratio, got num_heads {num_heads} and {value_dim}"
            )
        self.num_levels, self.num_heads, self.num_points = num_levels, num_heads, num_points
        samples = num_heads * num_levels * num_points
        self.sampling_offsets = nn.Linear(dim, samples * 2)
        self.attention_weights = nn.Linear(dim, samples)
        self.value_proj = nn.Linear(dim, value_dim)
        self.output_proj = nn.Linear(value_dim, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Point head h in direction 2 pi h / heads, sample p at distance p + 1 cells, with equal weights."""
        angles = torch.arange(self.num_heads, dtype=torch.float32) * (2.0 * math.pi / self.num_heads)
        directions = torch.stack([angles.cos(), angles.sin()], dim=-1)
        directions = directions / directions.abs().amax(dim=-1, keepdim=True)
        distances = torch.arange(1, self.num_points + 1, dtype=torch.float32)
        offsets = directions[:, None, None, :] * distances[None, None, :, None]
        nn.init.zeros_(self.sampling_offsets.weight)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.expand(-1, self.num_levels, -1, -1).reshape(-1))
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(self, query: Tensor, reference: Tensor, value: Tensor, shapes: Sequence[tuple[int, int]]) -> Tensor:
        """Attend from queries to value maps; computed in the precision of the weights, also under autocast.

        Args:
            query: ``(b, n_q, dim)``.
            reference: ``(1 or b, n_q, 1 or num_levels, 2)`` points (x, y) in [0, 1].
            value: ``(b, sum of h * w, dim)``, the levels row-major one after another.
            shapes: (h, w) of every level.

        Returns:
            ``(b, n_q, dim)``.

        Raises:
            ValueError: if the levels or their sizes do not fit ``value``.
        """
        if len(shapes) != self.num_levels or sum(h * w for h, w in shapes) != value.shape[1]:
            raise ValueError(
                f"shapes must name {self.num_levels} levels that hold the {value.shape[1]} values, got {tuple(shapes)}"
            )
        dtype = self.output_proj.weight.dtype  # float32 unless the module was cast
        with torch.autocast(query.device.type, enabled=False):
            return self._attend(query.to(dtype), reference.to(dtype), value.to(dtype), shapes).to(query.dtype)

    def _attend(self, query: Tensor, reference: Tensor, value: Tensor, shapes: Sequence[tuple[int, int]]) -> Tensor:
        b, n_q, _ = query.shape
        heads, levels, points = self.num_heads, self.num_levels, self.num_points
        sizes = _sizes(shapes, reference)
        offsets = self.sampling_offsets(query).view(b, n_q, heads, levels, points, 2)
        # (b, n_q, heads, levels, points, 2): offsets count cells of their own level
        locations = reference[:, :, None, :, None, :] + offsets / sizes[None, None, None, :, None, :]
        grids = (2.0 * locations - 1.0).permute(0, 2, 3, 1, 4, 5).flatten(0, 1)
        weights = self.attention_weights(query).view(b, n_q, heads, levels * points).softmax(dim=-1)
        weights = weights.view(b, n_q, heads, levels, points).permute(0, 2, 3, 1, 4).flatten(0, 1).unsqueeze(1)
        maps = self.value_proj(value).view(b, value.shape[1], heads, -1).permute(0, 2, 3, 1).flatten(0, 1)
        read: Tensor | None = None
        for level, (level_map, (h, w)) in enumerate(
            zip(maps.split([h * w for h, w in shapes], dim=-1), shapes, strict=True)
        ):
            sampled = functional.grid_sample(
                level_map.unflatten(-1, (h, w)),
                grids[:, level],
                mode="bilinear",
                padding_mode="zeros",
                align_corners=False,
            )
            part = (sampled * weights[:, :, level]).sum(dim=-1)
            read = part if read is None else read + part
        assert read is not None
        output: Tensor = self.output_proj(read.view(b, heads * read.shape[1], n_q).transpose(1, 2))
        return output


def _sizes(shapes: Sequence[tuple[int, int]], like: Tensor) -> Tensor:
    """(w, h) of every level, ``(levels, 2)``, filled in on the device: a copy from the host would wait for it."""
    sizes = like.new_empty(len(shapes), 2)
    for level, (h, w) in enumerate(shapes):
        sizes[level, 0].fill_(w)
        sizes[level, 1].fill_(h)
    return sizes


def pixel_centres(shapes: Sequence[tuple[int, int]], like: Tensor) -> Tensor:
    """Centres of all cells of the given grids, row-major, as ``(1, sum of h * w, 1, 2)`` points (x, y) in [0, 1]."""
    parts = []
    for h, w in shapes:
        y = (torch.arange(h, device=like.device, dtype=torch.float32) + 0.5) / h
        x = (torch.arange(w, device=like.device, dtype=torch.float32) + 0.5) / w
        parts.append(torch.stack([x[None, :].expand(h, w), y[:, None].expand(h, w)], dim=-1).reshape(h * w, 2))
    return torch.cat(parts)[None, :, None, :]
