"""Pictures per second and core of the training mapper beside a plain Pillow and torchvision pipeline; JSON lines.

python tests/benchmarks/bm_mapper.py --rounds 5
python tests/benchmarks/bm_mapper.py --pictures ../shared/data/coco64/images

Both make the views of the in1k recipe: the whole picture at 512, two crops at 224 with DINO's photometric changes. The
plain one decodes and resizes with Pillow and takes its draws from torchvision's transforms (RandomResizedCrop, flip,
ColorJitter, grey) and Pillow's blur. The pictures are generated JPEGs of ImageNet's usual 500 x 375 and of 3000 x 2000,
or --pictures. Rounds over all pictures alternate between the two on one thread; the first round of each warms up and
does not count. "share" is each part's share of the mapper's time, "reduction" how often a JPEG was reduced while it
was decoded, and "mapper_unreduced" the mapper when that is switched off.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import cv2
import torch
from PIL import Image, ImageFilter
from torchvision import transforms
from torchvision.transforms.functional import pil_to_tensor

from s2uniseg_d2.config import load_config
from s2uniseg_d2.data import MultiViewMapper, mapper
from s2uniseg_d2.data.pictures import StoredPicture
from tests.benchmarks.bm_train_step import write_pictures

SIZES = {"500x375": ((500, 375), 64), "3000x2000": ((3000, 2000), 6)}
PARTS = {"decode": (StoredPicture, "read"), "resize": (mapper, "resize_longest"), "cut": (mapper, "cut_view")}
PARTS |= {"jitter": (mapper, "jitter_view")}


class PlainPipeline:
    """What one would write first."""

    def __init__(self, cfg) -> None:
        views = cfg.INPUT.VIEWS
        self.longest, self.count = cfg.INPUT.GLOBAL_LONGEST_PX, views.NUM
        bicubic = transforms.InterpolationMode.BICUBIC
        self.view = transforms.Compose(
            [
                transforms.RandomResizedCrop(
                    views.SIZE_PX, scale=views.SCALE, ratio=views.RATIO, interpolation=bicubic
                ),
                transforms.RandomHorizontalFlip(views.FLIP_PROB),
                transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
                transforms.RandomGrayscale(0.2),
                transforms.RandomApply([transforms.Lambda(self._blur)], p=0.5),
            ]
        )

    @staticmethod
    def _blur(image):
        return image.filter(ImageFilter.GaussianBlur(radius=0.1 + 1.9 * torch.rand(()).item()))

    def __call__(self, record):
        with Image.open(record["file_name"]) as file:
            image = file.convert("RGB")
        scale = self.longest / max(image.size)
        whole = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)
        views = torch.stack([pil_to_tensor(self.view(image)) for _ in range(self.count)])
        return {"image": pil_to_tensor(whole), "views": views}


def time_round(make, files, number: int) -> float:
    start = time.process_time()
    for draw, file in enumerate(files):
        make({"file_name": str(file), "draw": number * len(files) + draw})
    return len(files) / (time.process_time() - start)


def measure_parts(make, files) -> dict[str, object]:
    """Shares of one round, by wrapping the parts."""
    spent: Counter[str] = Counter()
    reductions: Counter[int] = Counter()
    originals = {name: getattr(owner, attribute) for name, (owner, attribute) in PARTS.items()}

    def timed(name):
        def call(*args, **kwargs):
            start = time.process_time()
            result = originals[name](*args, **kwargs)
            spent[name] += time.process_time() - start
            if name == "decode":
                reductions[args[1] if len(args) > 1 else 1] += 1
            return result

        return call

    for name, (owner, attribute) in PARTS.items():
        setattr(owner, attribute, timed(name))
    start = time.process_time()
    time_round(make, files, 0)
    whole = time.process_time() - start
    for name, (owner, attribute) in PARTS.items():
        setattr(owner, attribute, originals[name])
    share = {name: round(seconds / whole, 3) for name, seconds in spent.items()}
    return {"share": share | {"rest": round(1 - sum(share.values()), 3)}, "reduction": dict(sorted(reductions.items()))}


def compare(name: str, files, cfg, rounds: int) -> dict[str, object]:
    makers = {"plain": PlainPipeline(cfg), "mapper": MultiViewMapper(cfg, True)}
    rates: dict[str, list[float]] = {key: [] for key in (*makers, "mapper_unreduced")}
    choose = mapper.choose_reduction
    for number in range(rounds + 1):
        for key in rates:
            mapper.choose_reduction = (lambda *a, **k: 1) if key == "mapper_unreduced" else choose
            rate = time_round(makers[key.removesuffix("_unreduced")], files, number)
            rates[key] += [rate] if number else []
    mapper.choose_reduction = choose
    line: dict[str, object] = {"pictures": name, "count": len(files), "load_before": round(os.getloadavg()[0], 2)}
    for key, values in rates.items():
        line[key] = {
            "median": round(statistics.median(values), 1),
            "min": round(min(values), 1),
            "max": round(max(values), 1),
        }
    pairs = [ours / plain for ours, plain in zip(rates["mapper"], rates["plain"], strict=True)]
    return line | {"times_plain": round(statistics.median(pairs), 2)} | measure_parts(makers["mapper"], files)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pictures", type=Path, help="a folder of pictures instead of generated ones")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    torch.manual_seed(0)
    cfg = load_config(Path(__file__).resolve().parents[2] / "configs" / "s2uniseg_in1k.yaml")
    if arguments.pictures:
        files = sorted(path for path in arguments.pictures.iterdir() if path.is_file())
        print(json.dumps(compare(str(arguments.pictures), files, cfg, arguments.rounds)), flush=True)
        return
    for name, (size, count) in SIZES.items():
        with tempfile.TemporaryDirectory() as folder:
            write_pictures(Path(folder), count, size)
            print(json.dumps(compare(name, sorted(Path(folder).iterdir()), cfg, arguments.rounds)), flush=True)


if __name__ == "__main__":
    main()
