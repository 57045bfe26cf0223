"""DINO's projection head, and its published parameter names."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm


class DINOHead(nn.Module):
    """Logits over prototypes: three linear layers with GELU, unit length, and a weight-normalised linear layer.

    Source: the paper's "3-layer MLP with hidden dimension 2048 followed by L2 normalization and a linear layer of K
    dimensions"; widths, initialisation and names (``mlp.0``, ``mlp.2``, ``mlp.4``, ``last_layer``) are DINO's (arXiv
    2104.14294). State dicts with the older ``last_layer.weight_g`` and ``last_layer.weight_v`` load as they are; see
    ``official_head_names`` for other spellings.

    Args:
        in_dim: width of the queries.
        hidden_dim: width of the two hidden layers.
        bottleneck_dim: width of the normalised vectors.
        num_prototypes: K, the number of logits.
        norm_last_layer: keeps the prototypes at unit length (their norms are 1 and get no gradient), so that a logit
            is a cosine.

    Raises:
        ValueError: if a width is less than 1.
    """

    def __init__(
        self,
        in_dim: int,
        *,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        num_prototypes: int = 512,
        norm_last_layer: bool = True,
    ) -> None:
        super().__init__()
        widths = (in_dim, hidden_dim, bottleneck_dim, num_prototypes)
        if min(widths) < 1:
            raise ValueError(f"in_dim, hidden_dim, bottleneck_dim and num_prototypes must be at least 1, got {widths}")
        self.mlp = nn.Sequential(
            nn.Linear(in_dim, hidden_dim),
            nn.GELU(),
            nn.Linear(hidden_dim, hidden_dim),
            nn.GELU(),
            nn.Linear(hidden_dim, bottleneck_dim),
        )
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        # the parametrization of 2.x can be deep-copied, which the teacher needs; the older hook cannot
        self.last_layer = weight_norm(nn.Linear(bottleneck_dim, num_prototypes, bias=False))
        norms = self.last_layer.parametrizations.weight.original0
        with torch.no_grad():
            norms.fill_(1.0)
        norms.requires_grad_(not norm_last_layer)

    def forward(self, queries: Tensor) -> Tensor:
        """Logits ``(..., K)`` of queries ``(..., in_dim)``; no queries give no logits, with a graph."""
        # in half precision the norm's epsilon is zero and a zero vector would become NaN
        bottleneck = functional.normalize(self.mlp(queries).float(), dim=-1)
        logits: Tensor = self.last_layer(bottleneck)
        return logits


def official_head_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The head's part of a DINO state dict, under the names that ``DINOHead`` loads.

    Accepts ``module.`` and ``head.`` prefixes and both spellings of the layers: ``mlp.N`` with ``last_layer.weight_g``
    and ``last_layer.weight_v``, and ``projection_head.N`` with ``prototypes.weight``. The latter is split into its row
    norms and itself, which leaves the layer's output as it was. Keys of other modules are left out; the tensors are
    not copied.

    Raises:
        ValueError: if no key belongs to a head.
    """
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        name = key.removeprefix("module.").removeprefix("head.")
        if name.startswith("projection_head."):
            name = "mlp." + name.removeprefix("projection_head.")
        elif name == "prototypes.weight":
            renamed["last_layer.weight_g"] = value.norm(dim=1, keepdim=True)
            name = "last_layer.weight_v"
        if name.startswith(("mlp.", "last_layer.")):
            renamed[name] = value
    if not renamed:
        known = "mlp, last_layer, projection_head, prototypes"
        raise ValueError(f"state must hold a head ({known}), got the keys {sorted(state)[:5]}")
    return renamed
