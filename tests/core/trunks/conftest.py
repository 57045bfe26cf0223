from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor, nn

from s2uniseg_d2.core.trunks.vit import TimmViT
from s2uniseg_d2.core.trunks.vit_adapter import ViTAdapter

TINY_NAME = "vit_tiny_patch16_224"
TINY_SIZES = {"patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 4, "img_size": 64}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def make_vit() -> Callable[..., TimmViT]:
    def make(name: str = TINY_NAME, **changes: object) -> TimmViT:
        return TimmViT(name, **{**TINY_SIZES, **changes})  # type: ignore[arg-type]

    return make


@pytest.fixture
def make_adapter(make_vit: Callable[..., TimmViT]) -> Callable[..., ViTAdapter]:
    def make(vit: TimmViT | None = None, **changes: object) -> ViTAdapter:
        sizes = {"conv_inplane": 8, "deform_heads": 4, "extra_extractors": 1}
        return ViTAdapter(vit or make_vit(), **{**sizes, **changes})  # type: ignore[arg-type]

    return make


@pytest.fixture
def plain_timm() -> Callable[[TimmViT], nn.Module]:
    """Timm's own model of a tiny TimmViT with the same weights, in eval mode."""

    def copy(vit: TimmViT, **changes: object) -> nn.Module:
        model: nn.Module = timm.create_model(
            TINY_NAME, num_classes=0, dynamic_img_size=True, **{**TINY_SIZES, **changes}
        )
        model.load_state_dict(vit.state_dict())
        return model.eval()

    return copy


@pytest.fixture
def scatter_weights() -> Callable[[nn.Module], None]:
    """Moves every parameter away from its initial value, norms and positions included."""

    def scatter(module: nn.Module) -> None:
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(0.2 * torch.randn(parameter.shape))

    return scatter


@pytest.fixture
def timm_token_map(plain_timm: Callable[..., nn.Module]) -> Callable[[TimmViT, Tensor], Tensor]:
    """The final patch tokens of plain timm on pictures at the ViT's own scale, ``(b, c, h, w)``."""

    def token_map(vit: TimmViT, images: Tensor) -> Tensor:
        with torch.no_grad():
            tokens = plain_timm(vit).forward_features(images)[:, 1:]  # type: ignore[operator]
        h, w = (side // vit.patch_size for side in images.shape[2:])
        return tokens.transpose(1, 2).unflatten(2, (h, w))

    return token_map
