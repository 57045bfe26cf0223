"""Forward and backward of both decoders beside transformers' Mask2Former with equal weights; one JSON line per shape.

python tests/benchmarks/bm_head.py --views 2 --side 224
python tests/benchmarks/bm_head.py --views 32 --side 224 --device cuda --amp bfloat16

The head is the in1k recipe's (pixel decoder of 6 layers, 200 queries, 9 decoder layers, 768 channels in), the input a
random pyramid of --views square views of --side pixels. Each round runs ours and theirs once, in turns that alternate;
"times_faster" is the median of the rounds' ratios, forward and backward together. Times are CPU seconds of all threads,
which other work on the machine disturbs less than the clock; on a GPU they are seconds of the clock. "gap" is the
largest difference of the first prediction's mask logits, which says that both do the same work.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from contextlib import nullcontext
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from tests.core.decoder.test_transformers_parity import FULL, build, loss_of, pyramid, run_ours, run_theirs


def make_heads(device: torch.device):
    pixel, query, their_pixel, their_query = (part.to(device) for part in build(FULL))
    ours = torch.nn.ModuleList([pixel, query])
    theirs = torch.nn.ModuleList([their_pixel, their_query])
    return (
        (ours, lambda features: run_ours(pixel, query, features)),
        (theirs, lambda features: run_theirs(their_pixel, their_query, query, features)),
    )


def time_once(module, run, features, autocast, device: torch.device):
    """Seconds of forward and of backward, and the masks of the raw queries."""
    module.zero_grad()
    inputs = [feature.clone().requires_grad_() for feature in features]
    start = _now(device)
    with autocast():
        outputs = run(inputs)
    middle = _now(device)
    loss = loss_of(outputs) if device.type == "cpu" else _loss_on_gpu(outputs)
    before = _now(device)
    loss.backward()
    return (middle - start, _now(device) - before), outputs[1][0][0].detach()


def _loss_on_gpu(outputs):
    maps, layers = outputs
    return sum(part.float().tanh().mean() for part in (*maps, *(part for layer in layers for part in layer)))


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()


def compare(arguments: argparse.Namespace, views: int, side: int) -> dict[str, object]:
    device = torch.device(arguments.device)
    sizes = [(side // stride, side // stride) for stride in (4, 8, 16, 32)]
    features = [feature.to(device) for feature in pyramid(FULL["channels"], sizes, batch=views)]
    dtype = getattr(torch, arguments.amp) if arguments.amp else None

    def autocast():
        return torch.autocast(device.type, dtype=dtype) if dtype else nullcontext()

    heads = make_heads(device)
    rounds: list[dict[int, list[float]]] = []
    for number in range(arguments.rounds + 1):
        found: dict[int, list[float]] = {}
        masks = {}
        for which in ((0, 1), (1, 0))[number % 2]:
            found[which], masks[which] = time_once(*heads[which], features, autocast, device)
        rounds += [found] if number else []  # the first round warms up
    line: dict[str, object] = {"views": views, "side": side, "device": arguments.device, "amp": arguments.amp}
    line |= {"threads": arguments.threads, "rounds": arguments.rounds, "load_before": round(os.getloadavg()[0], 2)}
    for which, name in enumerate(("ours", "theirs")):
        for place, part in enumerate(("forward", "backward")):
            values = [found[which][place] for found in rounds]
            spread = (statistics.median(values), min(values), max(values))
            line[f"{name}_{part}"] = dict(zip(("median", "min", "max"), (round(v, 4) for v in spread), strict=True))
    ratios = [sum(found[1]) / sum(found[0]) for found in rounds]
    line["times_faster"] = {"median": round(statistics.median(ratios), 3), "min": round(min(ratios), 3)}
    line["times_faster"] |= {"max": round(max(ratios), 3)}
    line["gap"] = float((masks[0].float() - masks[1].float()).abs().max())
    return line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--views", type=int, nargs="+", default=[2])
    parser.add_argument("--side", type=int, nargs="+", default=[224])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--amp", choices=("", "bfloat16", "float16"), default="")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU here")
    torch.set_num_threads(arguments.threads)
    for side in arguments.side:
        for views in arguments.views:
            print(json.dumps(compare(arguments, views, side)), flush=True)


if __name__ == "__main__":
    main()
