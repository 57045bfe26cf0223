"""Time the labelling of pictures, whole and in its parts; one JSON line per encoder, picture size and upscaling.

python tests/benchmarks/bm_pseudo_masks.py --pictures ../shared/data/coco64/images --count 4 --sizes 512 256

"run" is the command's own pipeline: pictures per second, and the share of its time that the labelling thread spends in
the encoder, in the labeler, and with the rest, which is waiting for pictures or for the disk and putting the file
together. What a run spends once, on hashing the weights, is "start_seconds" and left out of both. "alone" are the
seconds per picture of each part on its own, without anything beside it.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from s2uniseg_d2.data.pictures import read_picture
from s2uniseg_d2.labeling.coco import dump
from s2uniseg_d2.labeling.encoder import digest
from s2uniseg_d2.labeling.journal import Journal, Tally
from s2uniseg_d2.labeling.maker import PseudoMaskMaker
from s2uniseg_d2.labeling.records import Selection, record_picture
from s2uniseg_d2.labeling.run import RunOptions, label_pictures
from s2uniseg_d2.labeling.sources import find_pictures


class TimedMaker(PseudoMaskMaker):
    """Counts the seconds in encoder and labeler."""

    seconds: Counter[str]

    def encode(self, *words):
        return self._timed("encoder", super().encode, words)

    def pool(self, *words):
        return self._timed("labeler", super().pool, words)

    def _timed(self, name, call, words):
        start = time.perf_counter()
        result = call(*words)
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self.seconds[name] += time.perf_counter() - start
        return result


def time_run(maker: TimedMaker, pictures, batch_size: int) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder:
        options = RunOptions(Path(folder) / "labels.json", batch_size=batch_size, embeddings="float16")
        maker.seconds = Counter()
        start = time.perf_counter()
        outcome = label_pictures(maker, pictures, options)
        wall = time.perf_counter() - start
    start = time.perf_counter()
    digest(maker.encoder)
    fixed = time.perf_counter() - start
    wall -= fixed
    shares = {name: round(seconds / wall, 4) for name, seconds in maker.seconds.items()}
    shares["rest"] = round(1 - sum(shares.values()), 4)
    count = outcome.tally.labelled
    return {
        "pictures_per_second": count / wall,
        "share": shares,
        "masks_per_picture": outcome.tally.annotations / count,
        "start_seconds": fixed,
    }


def time_parts(maker: TimedMaker, pictures, count: int) -> dict[str, float]:
    spent: Counter[str] = Counter()
    maker.seconds = spent
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder) / "journal", {})
        for number in range(count):
            start = time.perf_counter()
            image = read_picture(pictures.path(number))
            spent["read"] += time.perf_counter() - start
            start = time.perf_counter()
            resized = maker.resize(image)
            spent["resize"] += time.perf_counter() - start
            grid = maker.label_grids([resized], [image.shape[:2]])[0]
            start = time.perf_counter()
            record = record_picture(maker, grid, number, Selection(), image)
            spent["run_lengths"] += time.perf_counter() - start
            start = time.perf_counter()
            journal.append(number, Tally(1, 0, len(record.annotations), 0), dump(record.annotations).encode())
            spent["write"] += time.perf_counter() - start
        journal.close()
    return {name: round(seconds / count, 5) for name, seconds in spent.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(__file__).resolve().parents[3] / "shared" / "data" / "coco64" / "images"
    parser.add_argument("--pictures", default=str(default))
    parser.add_argument("--count", type=int, default=4)
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 256])
    parser.add_argument("--upscale", nargs="+", default=["nearest"])
    parser.add_argument("--weights", default="")
    parser.add_argument("--config-file")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--device")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    logging.disable(logging.WARNING)
    if not Path(arguments.pictures).is_dir():
        print(json.dumps({"skipped": f"there is no folder {arguments.pictures}"}))
        return
    pictures = find_pictures([arguments.pictures])
    pictures = pictures._replace(names=pictures.names[: arguments.count])
    for size in arguments.sizes:
        for upscale in arguments.upscale:
            maker = TimedMaker.from_pretrained(
                arguments.weights,
                arguments.config_file,
                device=arguments.device,
                image_size=size,
                upscale=upscale,
            )
            maker.seconds = Counter()
            maker(read_picture(pictures.path(0)))
            line = {"image_size": size, "upscale": upscale, "batch_size": arguments.batch_size}
            line |= {"device": str(maker.device), "threads": arguments.threads, "pictures": len(pictures.names)}
            line["run"] = time_run(maker, pictures, arguments.batch_size)
            line["alone_seconds_per_picture"] = time_parts(maker, pictures, len(pictures.names))
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
