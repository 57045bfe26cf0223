"""Time float32 matrix products of UniAP's shapes by PyTorch's ``mm`` and by ``multiply``; one JSON line per shape.

python tests/benchmarks/bm_products.py --threads 2 --repeats 9

"ratio" is the median of mm over that of ``multiply``, the two timed in turn. Where the machine gives no reason to leave
mm ("linear" false), both are the same.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from s2uniseg_d2.core.ops import products

# queries, width, tokens: single and many queries against a picture's tokens, and the tokens' second moments
SHAPES = [(8, 768, 2048), (100, 768, 2048), (1000, 768, 2048), (1000, 2048, 768), (768, 16384, 768)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for n, k, m in SHAPES:
        generator = torch.Generator().manual_seed(0)
        a, b = torch.randn(n, k, generator=generator), torch.randn(k, m, generator=generator)
        seconds: dict[str, list[float]] = {"mm": [], "multiply": []}
        for turn in range(-2, arguments.repeats):
            for name, call in (("mm", torch.mm), ("multiply", products.multiply)):
                start = time.perf_counter()
                call(a, b)
                if turn >= 0:
                    seconds[name].append(time.perf_counter() - start)
        median = {name: statistics.median(values) for name, values in seconds.items()}
        line = {"shape": [n, k, m], "threads": arguments.threads, "linear": products._prefers_linear()}
        line |= {f"{name}_gflops": round(2e-9 * n * k * m / value, 1) for name, value in median.items()}
        print(json.dumps(line | {"ratio": round(median["mm"] / median["multiply"], 2)}), flush=True)


if __name__ == "__main__":
    main()
