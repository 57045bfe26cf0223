"""Both decoders against transformers' Mask2Former under the same random weights.

The function has jumps (a pixel enters or leaves a query's mask) and kinks (ReLU, the borders of bilinear cells), and
at full size some of the millions of values lie within float32 rounding of one: then gradients differ by 1e-4 between
two correct programs, and between one program and itself after noise of 1e-6 on its input. So float64 must agree
closely everywhere; float32 must agree within the published tolerances under one of three sets of weights, at full size
with the gradients compared as one vector.
"""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from s2uniseg_d2.core.decoder import pixel_decoder
from s2uniseg_d2.core.decoder.pixel_decoder import PixelDecoder, PixelFeatures
from s2uniseg_d2.core.decoder.query_decoder import QueryDecoder, QueryGroup
from s2uniseg_d2.core.structures import FeaturePyramid
from tests.oracles.mask2former_names import pixel_decoder_to_transformers, query_decoder_to_transformers

OUTPUT_TOLERANCE, GRADIENT_TOLERANCE = 1e-4, 1e-5
DOUBLE_TOLERANCE = 1e-9

transformers = pytest.importorskip("transformers", reason="transformers is the oracle of these tests")
oracle = pytest.importorskip("transformers.models.mask2former.modeling_mask2former")

TINY = {
    "channels": (24, 32, 40, 48),
    "pixel": {"hidden_dim": 64, "mask_dim": 48, "num_layers": 2, "num_heads": 8, "ffn_dim": 96},
    "query": {"hidden_dim": 64, "mask_dim": 48, "num_layers": 4, "num_heads": 8, "ffn_dim": 80},
    "groups": (QueryGroup("ins", 7), QueryGroup("sem", 4)),
}
FULL = {
    "channels": (768,) * 4,
    "pixel": {},
    "query": {},
    "groups": (QueryGroup("ins", 150), QueryGroup("sem", 50)),
}
EVEN = ((32, 24), (16, 12), (8, 6), (4, 3))
ODD = ((50, 37), (25, 19), (13, 10), (7, 5))


def perturb(module, seed):
    """Move every parameter off its special starting value: norms, biases, zero weights."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)


def build(settings, seed=0, dtype=torch.float32):
    """Both parts of ours and both of transformers, with equal weights."""
    torch.manual_seed(seed)
    pixel, query = (
        PixelDecoder(settings["channels"], **settings["pixel"]),
        QueryDecoder(settings["groups"], **settings["query"]),
    )
    perturb(pixel, seed)
    perturb(query, seed + 1)
    pixel, query = pixel.to(dtype), query.to(dtype)
    sizes = {
        "feature_size": pixel.hidden_dim,
        "hidden_dim": query.hidden_dim,
        "mask_feature_size": pixel.mask_dim,
        "encoder_layers": len(pixel.transformer.encoder.layers),
        "encoder_feedforward_dim": pixel.transformer.encoder.layers[0].linear1.out_features,
        "dim_feedforward": query.transformer_ffn_layers[0].linear1.out_features,
        "decoder_layers": query.num_layers + 1,
        "num_attention_heads": 8,
        "num_queries": query.query_feat.num_embeddings,
        "dropout": 0.0,
    }
    config = transformers.Mask2FormerConfig(**sizes)
    their_pixel = oracle.Mask2FormerPixelDecoder(config, feature_channels=list(settings["channels"])).to(dtype).eval()
    their_query = oracle.Mask2FormerTransformerModule(in_features=query.hidden_dim, config=config).to(dtype).eval()
    their_pixel.load_state_dict(pixel_decoder_to_transformers(pixel.state_dict()), strict=True)
    folded = {**query.state_dict(), "query_feat.weight": query.raw_queries().detach()}
    their_query.load_state_dict(query_decoder_to_transformers(folded), strict=True)
    return pixel, query, their_pixel, their_query


def pyramid(channels, sizes, *, batch, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, c, h, w, generator=generator) for c, (h, w) in zip(channels, sizes, strict=True)]


def run_theirs(their_pixel, their_query, query, features):
    """Their outputs in our form: (mask features, memory maps), then (masks, objectness, queries) of every layer."""
    pixels = their_pixel(features, output_attentions=False, output_hidden_states=False, return_dict=True)
    memory = tuple(pixels.multi_scale_features)
    decoded = their_query(list(memory), pixels.mask_features, output_hidden_states=True)
    states = [x.transpose(0, 1) for x in decoded.intermediate_hidden_states]
    logits = [functional.linear(x, query.class_embed.weight, query.class_embed.bias) for x in states]
    return (pixels.mask_features, *memory), list(zip(decoded.masks_queries_logits, logits, states, strict=True))


def run_ours(pixel, query, features):
    pixels: PixelFeatures = pixel(FeaturePyramid(*features))
    return (pixels.mask_features, *pixels.memory), [tuple(x) for x in query(pixels)]


def largest_difference(ours, theirs):
    flat = [list(maps) + [part for layer in layers for part in layer] for maps, layers in (ours, theirs)]
    assert [x.shape for x in flat[0]] == [x.shape for x in flat[1]]
    return max(float((x - y).detach().abs().max()) for x, y in zip(*flat, strict=True))


def loss_of(outputs, seed=11):
    """A smooth loss that weighs every element of every output, of the order of 1."""
    maps, layers = outputs
    generator = torch.Generator().manual_seed(seed)
    parts = [*maps, *(part for layer in layers for part in layer)]
    return sum((part.tanh() * torch.randn(part.shape, generator=generator).to(part)).mean() for part in parts)


def gradients(module):
    return {name: parameter.grad for name, parameter in module.named_parameters()}


def compare(settings, sizes, *, batch, seed=0, dtype=torch.float32):
    """Largest difference of outputs, and pairs of gradients (those of the inputs too)."""
    pixel, query, their_pixel, their_query = build(settings, seed, dtype)
    features = [x.to(dtype) for x in pyramid(settings["channels"], sizes, batch=batch, seed=seed)]
    our_input, their_input = ([x.clone().requires_grad_() for x in features] for _ in range(2))
    ours = run_ours(pixel, query, our_input)
    loss_of(ours).backward()
    our_class = query.class_embed.weight.grad
    query.class_embed.weight.grad = None
    theirs = run_theirs(their_pixel, their_query, query, their_input)
    loss_of(theirs).backward()
    pairs = [(our_class, query.class_embed.weight.grad)]
    pairs += [(x.grad, y.grad) for x, y in zip(our_input, their_input, strict=True)]
    for renamed, oracle_part in (
        (pixel_decoder_to_transformers(gradients(pixel)), their_pixel),
        (query_decoder_to_transformers(gradients(query)), their_query),
    ):
        expected = gradients(oracle_part)
        assert renamed.keys() == expected.keys()
        pairs += [(renamed[name], expected[name]) for name in expected]
    assert all(x.dtype == y.dtype == dtype for x, y in pairs)
    # a zero gradient would agree with anything
    assert all(y.abs().max() > 0 for _, y in pairs)
    return largest_difference(ours, theirs), pairs


def largest_gap(pairs):
    return max(float((x - y).abs().max()) for x, y in pairs)


def relative_gap(pairs):
    """Length of the difference of all gradients as one vector, relative to their length."""
    return float(sum((x - y).square().sum() for x, y in pairs) / sum(y.square().sum() for _, y in pairs)) ** 0.5


def exact_centres(shapes, like):
    """Pixel centres in float64; the ones of the package are float32 by design."""
    parts = []
    for h, w in shapes:
        y, x = torch.meshgrid(torch.arange(h).double(), torch.arange(w).double(), indexing="ij")
        parts.append(torch.stack([(x + 0.5) / w, (y + 0.5) / h], dim=-1).flatten(0, 1))
    return torch.cat(parts)[None, :, None].to(like)


@pytest.fixture
def in_double(monkeypatch):
    """Lift the encoder's float32 island to float64."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    monkeypatch.setattr(pixel_decoder, "pixel_centres", exact_centres)


CASES = pytest.mark.parametrize(
    ("settings", "sizes", "batch"),
    [(TINY, EVEN, 2), (TINY, ODD, 2), (FULL, EVEN, 1), (FULL, ODD, 1)],
    ids=["tiny-even", "tiny-odd", "full-even", "full-odd"],
)


@CASES
@pytest.mark.usefixtures("in_double")
def test_float64_outputs_and_gradients(settings, sizes, batch):
    outputs, pairs = compare(settings, sizes, batch=batch, dtype=torch.float64)
    assert outputs <= DOUBLE_TOLERANCE
    assert largest_gap(pairs) <= DOUBLE_TOLERANCE
    assert max(float(y.abs().max()) for _, y in pairs) > 100 * GRADIENT_TOLERANCE


@CASES
def test_float32_outputs_and_gradients(settings, sizes, batch):
    gap, tolerance = (relative_gap, 5e-3) if settings is FULL else (largest_gap, GRADIENT_TOLERANCE)
    found = []
    for seed in range(3):
        outputs, pairs = compare(settings, sizes, batch=batch, seed=seed)
        found.append((outputs, gap(pairs)))
        if outputs <= OUTPUT_TOLERANCE and found[-1][1] <= tolerance:
            return
    pytest.fail(f"(outputs, gradients) differ by {found}")


PIXEL_PROBES = [
    "input_proj.0.0.weight",
    "transformer.level_embed",
    "transformer.encoder.layers.0.self_attn.sampling_offsets.bias",
    "transformer.encoder.layers.1.self_attn.attention_weights.weight",
    "adapter_1.norm.weight",
    "layer_1.weight",
]
QUERY_PROBES = [
    "query_feat.weight",
    "query_embed.weight",
    "query_type.weight",
    "level_embed.weight",
    "decoder_norm.bias",
    "mask_embed.layers.1.weight",
    "transformer_self_attention_layers.3.self_attn.in_proj_weight",
    "transformer_cross_attention_layers.0.multihead_attn.in_proj_weight",
    "transformer_ffn_layers.2.linear1.weight",
]


@pytest.mark.parametrize("name", [*PIXEL_PROBES, *QUERY_PROBES])
def test_one_changed_weight_is_noticed(name):
    pixel, query, their_pixel, their_query = build(TINY)
    features = pyramid(TINY["channels"], EVEN, batch=1)
    with torch.no_grad():
        theirs = run_theirs(their_pixel, their_query, query, features)
        assert largest_difference(run_ours(pixel, query, features), theirs) <= OUTPUT_TOLERANCE
        (pixel if name in PIXEL_PROBES else query).get_parameter(name).view(-1)[0] += 0.5
        assert largest_difference(run_ours(pixel, query, features), theirs) > 10 * OUTPUT_TOLERANCE
