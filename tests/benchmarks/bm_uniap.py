"""Time UniAP (five layers, instance and semantic pooling) on synthetic features; one JSON line per map.

python tests/benchmarks/bm_uniap.py --sizes 32 64 128 --threads 2 --repeats 3
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from s2uniseg_d2.core.labelers.uniap import UniAP


def smooth_features(side: int, d: int, generator: torch.Generator) -> torch.Tensor:
    """Regions of three scales with a common direction and smooth noise: adjacent cosines mostly 0.5 to 0.95."""
    field = 0.3 * torch.randn(1, d, 1, 1, generator=generator).expand(1, d, side, side).clone()
    axis = torch.arange(side) + 0.5
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), dim=-1).view(-1, 2)
    for cells, strength in ((2, 0.3), (4, 0.3), (side // 4, 0.7)):
        centres = torch.rand(cells * cells, 2, generator=generator) * side
        nearest = torch.cdist(grid, centres).argmin(dim=1)
        colours = torch.randn(cells * cells, d, generator=generator)
        field += strength * colours[nearest].T.reshape(1, d, side, side)
    noise = functional.avg_pool2d(torch.randn(1, d, side, side, generator=generator), 3, 1, 1, count_include_pad=False)
    amount = functional.interpolate(torch.rand(1, 1, 8, 8, generator=generator), size=(side, side), mode="bilinear")
    return field + 3 * (0.3 + 2.5 * amount) * noise


def block_features(side: int, d: int, generator: torch.Generator) -> torch.Tensor:
    """What the zero-initialised adapter gives: tokens of a quarter of the resolution, enlarged by nearest."""
    return functional.interpolate(smooth_features(side // 4, d, generator), scale_factor=4, mode="nearest")


def adjacent_cosines(features: torch.Tensor) -> list[float]:
    unit = functional.normalize(features, dim=1)
    cosines = (unit[..., 1:] * unit[..., :-1]).sum(dim=1).flatten()
    return [round(float(q), 2) for q in torch.quantile(cosines, torch.tensor([0.05, 0.5, 0.95]))]


def time_uniap(features: torch.Tensor, repeats: int) -> dict[str, object]:
    label = UniAP()
    label(features)
    seconds, cpu_seconds = [], []
    for _ in range(repeats):
        if features.is_cuda:
            torch.cuda.synchronize()
        start, cpu_start = time.perf_counter(), time.process_time()
        masks = label(features)[0]
        if features.is_cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - cpu_start)
    layers = list(label.iterate_layers(features[0]))
    return {
        "seconds": {"median": statistics.median(seconds), "min": min(seconds), "max": max(seconds)},
        "cpu_seconds_min": min(cpu_seconds),
        "masks": {"instance": len(masks.instance.level), "semantic": len(masks.semantic.level)},
        "nodes": [layer.instance_nodes.sizes.numel() for layer in layers],
        "undecided": [[step.undecided for step in layer.steps] for layer in layers],
        "exact": [[step.exact for step in layer.steps] for layer in layers],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for side in arguments.sizes:
        for kind, make in (("smooth", smooth_features), ("block", block_features)):
            features = make(side, arguments.width, torch.Generator().manual_seed(side))
            line = {"method": "UniAP", "map": kind, "side": side, "width": arguments.width, "device": arguments.device}
            line["adjacent_cosine_5_50_95"] = adjacent_cosines(features)
            line.update(time_uniap(features.to(arguments.device), arguments.repeats))
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
