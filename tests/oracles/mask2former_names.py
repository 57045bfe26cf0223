"""Our state dicts of the Mask2Former parts under the names that transformers gives them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

Rules = Sequence[tuple[str, str]]

# Each name of ours matches exactly one pattern; the replacement is transformers' name.
PIXEL_DECODER_RULES: Rules = (
    (r"input_proj\.(\d+\..+)", r"input_projections.\1"),
    (r"mask_features\.(\w+)", r"mask_projection.\1"),
    (r"(adapter_1|layer_1)\.weight", r"\1.0.weight"),
    (r"(adapter_1|layer_1)\.norm\.(\w+)", r"\1.1.\2"),
    (r"transformer\.level_embed", r"level_embed"),
    (r"transformer\.(encoder\.layers\.\d+\.self_attn\..+)", r"\1"),
    (r"transformer\.(encoder\.layers\.\d+)\.norm1\.(\w+)", r"\1.self_attn_layer_norm.\2"),
    (r"transformer\.(encoder\.layers\.\d+)\.norm2\.(\w+)", r"\1.final_layer_norm.\2"),
    (r"transformer\.(encoder\.layers\.\d+)\.linear([12])\.(\w+)", r"\1.fc\2.\3"),
)

QUERY_DECODER_RULES: Rules = (
    (r"query_feat\.weight", r"queries_features.weight"),
    (r"query_embed\.weight", r"queries_embedder.weight"),
    (r"level_embed\.weight", r"level_embed.weight"),
    (r"decoder_norm\.(\w+)", r"decoder.layernorm.\1"),
    (r"mask_embed\.layers\.(\d+)\.(\w+)", r"decoder.mask_predictor.mask_embedder.\1.0.\2"),
    (r"transformer_self_attention_layers\.(\d+\.self_attn\..+)", r"decoder.layers.\1"),
    (r"transformer_self_attention_layers\.(\d+)\.norm\.(\w+)", r"decoder.layers.\1.self_attn_layer_norm.\2"),
    # transformers keeps torch's own attention module here, with its fused in_proj_weight
    (r"transformer_cross_attention_layers\.(\d+)\.multihead_attn\.(.+)", r"decoder.layers.\1.cross_attn.\2"),
    (r"transformer_cross_attention_layers\.(\d+)\.norm\.(\w+)", r"decoder.layers.\1.cross_attn_layer_norm.\2"),
    (r"transformer_ffn_layers\.(\d+)\.linear([12])\.(\w+)", r"decoder.layers.\1.fc\2.\3"),
    (r"transformer_ffn_layers\.(\d+)\.norm\.(\w+)", r"decoder.layers.\1.final_layer_norm.\2"),
)


def pixel_decoder_to_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a ``PixelDecoder``, or their gradients, named as in ``Mask2FormerPixelDecoder``."""
    return _renamed(state, PIXEL_DECODER_RULES)


def query_decoder_to_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a ``QueryDecoder`` without type tokens and class head, named as in ``Mask2FormerTransformerModule``.

    Fold the type tokens into ``query_feat.weight`` first; the class head has no place in that module.
    """
    state = {name: value for name, value in state.items() if not name.startswith(("query_type.", "class_embed."))}
    renamed: dict[str, Tensor] = {}
    for name, value in _renamed(state, QUERY_DECODER_RULES).items():
        fused = re.fullmatch(r"(.+\.self_attn)\.in_proj_(weight|bias)", name)
        if fused is None:
            renamed[name] = value
            continue
        for letter, part in zip("qkv", value.chunk(3), strict=True):
            renamed[f"{fused[1]}.{letter}_proj.{fused[2]}"] = part
    return renamed


def _renamed(state: Mapping[str, Tensor], rules: Rules) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        targets = [re.sub(pattern, target, name) for pattern, target in rules if re.fullmatch(pattern, name)]
        if len(targets) != 1:
            raise KeyError(f"{name} matches {len(targets)} rules")
        renamed[targets[0]] = value
    return renamed
