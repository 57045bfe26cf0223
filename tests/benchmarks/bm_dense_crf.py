"""The dense CRF on the permutohedral lattice: seconds, and agreement with the sum over all pairs; one JSON line each.

python tests/benchmarks/bm_dense_crf.py [PICTURE]

Without a photograph it takes smooth noise.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from s2uniseg_d2.core.ops.dense_crf import dense_crf
from s2uniseg_d2.data import read_picture


def scores(classes, size):
    noise = torch.randn(1, classes, 8, 8, generator=torch.Generator().manual_seed(0))
    return functional.interpolate(noise, (size, size), mode="bilinear")[0].mul(2).softmax(0)


def timed(*arguments, **settings):
    start = time.perf_counter()
    result = dense_crf(*arguments, **settings)
    return result, time.perf_counter() - start


def open_picture(path):
    if path:
        return torch.from_numpy(read_picture(path)).permute(2, 0, 1)[None].float()
    noise = torch.randn(1, 3, 40, 40, generator=torch.Generator().manual_seed(1))
    return (functional.interpolate(noise, (480, 480), mode="bicubic") * 60 + 128).clamp(0, 255)


def main(path=None):
    whole = open_picture(path)
    for size, classes, compares in ((64, 20, True), (96, 20, True), (320, 20, False)):
        picture = functional.interpolate(whole, (size, size), mode="area")[0].round()
        given = scores(classes, size)
        found, seconds = timed(given, picture)
        line = {"size": size, "classes": classes, "threads": torch.get_num_threads(), "lattice_s": round(seconds, 2)}
        if compares:
            exact, seconds = timed(given, picture, is_exact=True)
            line["all_pairs_s"] = round(seconds, 2)
            line["changed_by_crf"] = round(float((exact.argmax(0) != given.argmax(0)).float().mean()), 4)
            line["labels_that_differ"] = round(float((exact.argmax(0) != found.argmax(0)).float().mean()), 4)
            line["mean_difference"] = round(float((exact - found).abs().mean()), 5)
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
