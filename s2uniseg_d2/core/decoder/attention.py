"""Multi-head attention whose mask is shared by all heads."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Attention(nn.Module):
    """Each query reads a weighted mean of the values that it may see.

    Computes what ``torch.nn.MultiheadAttention(dim, num_heads, batch_first=True)`` does without dropout, under the same
    parameter names, but takes one mask for all heads: a Boolean ``(b, n_q, n_k)`` is never repeated per head nor
    turned into floats, which at a 1024-pixel view would take 100 MB for every picture and layer.

    Args:
        dim: channels of queries, keys and values.
        num_heads: attention heads.

    Raises:
        ValueError: if ``num_heads`` does not divide ``dim``.
    """

    def __init__(self, dim: int, *, num_heads: int) -> None:
        super().__init__()
        if num_heads < 1 or dim < 1 or dim % num_heads:
            raise ValueError(f"num_heads must divide the width, got num_heads {num_heads} and width {dim}")
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None = None) -> Tensor:
        """Attend from queries to values.

        Args:
            query: ``(b, n_q, dim)``.
            key: ``(b, n_k, dim)``.
            value: ``(b, n_k, dim)``.
            allowed: ``(b, n_q, n_k)`` bool, what each query may see; every row must allow something. ``None``
                allows everything.

        Returns:
            ``(b, n_q, dim)``.
        """
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        q, k, v = (
            self._split_heads(functional.linear(x, weight, bias))
            for x, weight, bias in zip((query, key, value), weights, biases, strict=True)
        )
        mask = None if allowed is None else allowed[:, None]
        read = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        output: Tensor = self.out_proj(read.transpose(1, 2).flatten(2))
        return output

    def _split_heads(self, x: Tensor) -> Tensor:
        """Turn ``(b, n, dim)`` into ``(b, heads, n, dim / heads)``."""
        b, n, dim = x.shape
        return x.view(b, n, self.num_heads, dim // self.num_heads).transpose(1, 2)
