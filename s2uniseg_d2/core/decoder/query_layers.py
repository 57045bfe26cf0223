"""The three kinds of layer that the query decoder alternates; each adds to its input, then normalises."""

from __future__ import annotations

from torch import Tensor, nn

from s2uniseg_d2.core.decoder.attention import Attention


class CrossAttentionLayer(nn.Module):
    """Queries after reading from the pixels that their masks allow.

    Source: Mask2Former (arXiv 2112.01527), Eq. 1 and 2.
    """

    def __init__(self, dim: int, *, num_heads: int) -> None:
        super().__init__()
        self.multihead_attn = Attention(dim, num_heads=num_heads)
        self.norm = nn.LayerNorm(dim)

    def forward(self, queries: Tensor, position: Tensor, keys: Tensor, values: Tensor, allowed: Tensor) -> Tensor:
        """Return ``(b, q, dim)`` queries; ``allowed`` is ``(b, q, pixels)`` bool with something allowed in each row."""
        read = self.multihead_attn(queries + position, keys, values, allowed)
        output: Tensor = self.norm(queries + read)
        return output


class SelfAttentionLayer(nn.Module):
    """Queries after reading from all queries of the picture, those of other groups too."""

    def __init__(self, dim: int, *, num_heads: int) -> None:
        super().__init__()
        self.self_attn = Attention(dim, num_heads=num_heads)
        self.norm = nn.LayerNorm(dim)

    def forward(self, queries: Tensor, position: Tensor) -> Tensor:
        """Return ``(b, q, dim)`` queries."""
        placed = queries + position
        output: Tensor = self.norm(queries + self.self_attn(placed, placed, queries))
        return output


class FeedForwardLayer(nn.Module):
    """Queries after a two-layer perceptron applied to each of them."""

    def __init__(self, dim: int, *, ffn_dim: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(dim, ffn_dim)
        self.linear2 = nn.Linear(ffn_dim, dim)
        self.norm = nn.LayerNorm(dim)
        nn.init.xavier_uniform_(self.linear1.weight)
        nn.init.xavier_uniform_(self.linear2.weight)

    def forward(self, queries: Tensor) -> Tensor:
        """Return ``(b, q, dim)`` queries."""
        output: Tensor = self.norm(queries + self.linear2(self.linear1(queries).relu()))
        return output
