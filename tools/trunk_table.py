#!/usr/bin/env python
"""Check which of timm's ViTs work as the trunk, with random weights, and write the table of docs/trunks.md.

For each name, the ViT is built at its full size with weights drawn at random, put into a fresh ViT-Adapter and shown a
picture that is not square. Checked against timm's own model with the same weights:

* the tokens are timm's (``forward_features``), whatever the adapter's groups of blocks;
* the four maps have strides 4, 8, 16 and 32;
* the adapter changes nothing at first: the stride-4 map that UniAP pools is the ViT's tokens, repeated.

    python tools/trunk_table.py                                          # the whole table, some minutes and 4 GB
    python tools/trunk_table.py vit_small_patch14_dinov2.lvd142m         # these names alone
    python tools/trunk_table.py --write docs/trunks.md                   # puts the table into the file
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

from s2uniseg_d2.core.trunks.vit import TimmViT
from s2uniseg_d2.core.trunks.vit_adapter import GRID_STRIDE, ViTAdapter
from s2uniseg_d2.exit_status import HELP, run_main

NAMES = (
    "vit_small_patch8_224.dino",
    "vit_small_patch16_224.dino",
    "vit_base_patch8_224.dino",
    "vit_base_patch16_224.dino",
    "vit_small_patch14_dinov2.lvd142m",
    "vit_base_patch14_dinov2.lvd142m",
    "vit_large_patch14_dinov2.lvd142m",
    "vit_small_patch14_reg4_dinov2.lvd142m",
    "vit_base_patch14_reg4_dinov2.lvd142m",
    "vit_small_patch16_dinov3.lvd1689m",
    "vit_small_plus_patch16_dinov3.lvd1689m",
    "vit_base_patch16_dinov3.lvd1689m",
    "vit_large_patch16_dinov3.lvd1689m",
    "vit_base_patch16_224.mae",
    "vit_large_patch16_224.mae",
    "vit_base_patch16_clip_224.openai",
    "vit_base_patch16_clip_quickgelu_224.openai",
    "vit_base_patch32_clip_224.openai",
    "vit_large_patch14_clip_224.openai",
)
REFUSED = (
    "swin_tiny_patch4_window7_224",
    "beit_base_patch16_224",
    "hiera_base_224",
    "samvit_base_patch16",
    "vit_base_patch16_rope_mixed_224",
    "deit_tiny_distilled_patch16_224",
)
PICTURE_PX = (64, 96)
TOLERANCE = 1e-4  # of tokens after a LayerNorm, whose values are about 1
START, END = "<!-- trunk table: tools/trunk_table.py -->", "<!-- end of the trunk table -->"


class Trunk(NamedTuple):
    """What was found for one name.

    Attributes:
        name: timm's.
        patch: side of a patch in pixels.
        width: channels of a token.
        depth: blocks.
        prefix: tokens before the patches (CLS and registers).
        positions: learned (and the side of their grid), rotary, or both.
        token_error: largest difference of a token from timm's.
        map_error: largest difference of the stride-4 map from timm's tokens, repeated.
    """

    name: str
    patch: int
    width: int
    depth: int
    prefix: int
    positions: str
    token_error: float
    map_error: float


def check_trunk(name: str, spread: float = 0.02, **sizes: Any) -> Trunk:
    """Build, run and compare one ViT.

    Args:
        name: timm's.
        spread: of what is added to the weights, see :func:`scatter`.
        sizes: that shrink it, as ``TimmViT`` takes them.

    Raises:
        ValueError: if the name is none that fits, or something differs from timm's own.
    """
    torch.manual_seed(0)
    vit = TimmViT(name, **sizes).eval()
    scatter(vit, spread)
    adapter = ViTAdapter(vit, conv_inplane=8, deform_heads=heads_of(vit.embed_dim)).eval()
    plain = timm.create_model(name, num_classes=0, dynamic_img_size=True, **sizes).eval()
    unset, unknown = plain.load_state_dict(vit.state_dict(), strict=False)
    if unknown or any(not key.startswith("attn_pool.") for key in unset):  # SigLIP's pooling stands behind the tokens
        raise ValueError(f"tensors of {name} must be timm's, got {unknown} in place of {unset}")
    return compare(adapter, plain)


@torch.no_grad()
def compare(adapter: ViTAdapter, plain: nn.Module) -> Trunk:
    """What the table says about a fresh adapter beside timm's own model of the same weights."""
    vit, (height, width) = adapter.vit, PICTURE_PX
    picture = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(1))
    rows, columns = height // GRID_STRIDE, width // GRID_STRIDE
    seen = functional.interpolate(
        picture, (rows * vit.patch_size, columns * vit.patch_size), mode="bilinear", align_corners=False
    )
    tokens: Tensor = plain.forward_features(seen)  # type: ignore[operator]
    token_map = tokens[:, vit.num_prefix_tokens :].transpose(1, 2).unflatten(2, (rows, columns))
    repeated = token_map.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    token_error = float((vit(seen) - tokens).abs().max())
    map_error = float((adapter.pooling_features(picture) - repeated).abs().max())
    for name, error in (("tokens", token_error), ("stride-4 map", map_error)):
        if not error <= TOLERANCE:
            raise ValueError(f"{name} of {vit.name} must be timm's within {TOLERANCE}, got a difference of {error:.2g}")
    for stride, value in zip((4, 8, 16, 32), adapter(picture), strict=True):
        expected = (1, vit.embed_dim, height // stride, width // stride)
        if tuple(value.shape) != expected or not value.isfinite().all():
            raise ValueError(f"map of stride {stride} of {vit.name} must be {expected}, got {tuple(value.shape)}")
    learned = f"learned, {vit.grid_size[0]} x {vit.grid_size[1]}" if vit.pos_embed is not None else ""
    return Trunk(
        name=vit.name,
        patch=vit.patch_size,
        width=vit.embed_dim,
        depth=vit.depth,
        prefix=vit.num_prefix_tokens,
        positions=" and ".join(filter(None, (learned, "rotary" if vit.rope is not None else ""))),
        token_error=token_error,
        map_error=map_error,
    )


def scatter(vit: nn.Module, spread: float) -> None:
    """Move all weights away from their start, at which layer scales and positions would hide mistakes."""
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.add_(spread * torch.randn_like(parameter))


def heads_of(width: int) -> int:
    """Heads of the deformable attentions: 12, 6 or 4, the first that divides the values' width."""
    return next(heads for heads in (12, 6, 4, 2, 1) if width // 2 % heads == 0)


def refusal_of(name: str) -> str:
    """Why a name does not fit.

    Raises:
        ValueError: if it does.
    """
    try:
        with torch.device("meta"):
            TimmViT(name)
    except ValueError as error:
        return " ".join(str(error).split())
    raise ValueError(f"{name} must not fit")


def table(trunks: list[Trunk]) -> list[str]:
    """The rows as Markdown."""
    lines = [
        "| timm's name | patch | ViT sees, for 1024 x 1024 | width, blocks | prefix tokens | positions |",
        "|---|---|---|---|---|---|",
    ]
    for trunk in trunks:
        seen = 1024 // GRID_STRIDE * trunk.patch
        lines.append(
            f"| `{trunk.name}` | {trunk.patch} | {seen} x {seen} | {trunk.width}, {trunk.depth} | {trunk.prefix} "
            f"| {trunk.positions} |"
        )
    worst = [max(getattr(trunk, key) for trunk in trunks) for key in ("token_error", "map_error")]
    largest = f"Largest difference: tokens {worst[0]:.1e}, stride-4 map {worst[1]:.1e}, of values of about 1"
    return [*lines, "", f"{largest} (timm {timm.__version__}, torch {torch.__version__.split('+')[0]}, CPU)."]


def put_into(path: Path, lines: list[str]) -> None:
    """Replace what stands between the two marks of a file.

    Raises:
        ValueError: if the file has no such marks.
    """
    text = path.read_text(encoding="utf-8")
    if START not in text or END not in text.split(START, 1)[1]:
        raise ValueError(f"{path} must hold the lines {START!r} and {END!r}")
    before, rest = text.split(START, 1)
    path.write_text("\n".join([before + START, "", *lines, "", END]) + rest.split(END, 1)[1], encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Check and print; returns the exit status, 1 if a trunk did not do as it should."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="timm's names; default: the table's")
    parser.add_argument("--write", type=Path, help="a Markdown file whose table is replaced")
    args = parser.parse_args(arguments)
    trunks: list[Trunk] = []
    try:
        for name in args.names or NAMES:
            trunks.append(check_trunk(name))
            sys.stderr.write(f"{name}: tokens {trunks[-1].token_error:.1e}, map {trunks[-1].map_error:.1e}\n")
        lines = table(trunks)
        if not args.names:
            lines += ["", "| refused | why |", "|---|---|"]
            lines += [f"| `{name}` | {refusal_of(name).split(', which ')[-1]} |" for name in REFUSED]
        if args.write:
            put_into(args.write, lines)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"trunk_table.py: {error}\n")
        return 1
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main, "trunk_table.py"))
