#!/usr/bin/env python
"""Train on a folder of your own pictures and look at the masks: checks, trains, draws a gallery.

* first, what it would take: `python -m s2uniseg_d2.own_pictures PICTURES --output RUN --dry-run`
* then `python -m s2uniseg_d2.own_pictures PICTURES --output RUN`, and open RUN/gallery/index.html
* after Ctrl-C or a power cut, the same words again: it goes on where it was

No labels are needed and none are read. The pictures are only read. docs/own-pictures.md tells it from start to finish.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# before PyTorch starts its threads: threads that spin while they wait take the cores that reading pictures needs
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from s2uniseg_d2._detectron2 import require_detectron2
from s2uniseg_d2.exit_status import HELP, INTERRUPTED, fail, printable

NAME = "own_pictures"
# A wheel holds the recipes in the package, a checkout beside it.
_PACKAGE = Path(__file__).resolve().parent
CONFIGS = (_PACKAGE if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent) / "configs"
RECIPES = ("cpu", "gpu")
EPILOG = """\
recipes:
  cpu   minutes, no download, random weights: a try-out that shows whether everything works with your pictures
  gpu   hours on a GPU of 8 to 12 GB, from DINO weights that timm downloads once
  or a YAML file of your own

"""


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, check, train, draw; returns the exit status."""
    arguments = make_parser().parse_args(argv)
    logging.basicConfig(format="%(message)s")
    # fvcore 0.1.5 was written for older torch, and a reader of this command can do nothing about it
    warnings.filterwarnings("ignore", "`torch.jit.script", FutureWarning)
    try:
        require_detectron2()
        words = _prepare(arguments)
    except (ValueError, OSError, ImportError) as error:
        return fail(NAME, error)
    except KeyboardInterrupt:
        return fail(NAME, "interrupted while the pictures were looked at; nothing was written", INTERRUPTED)
    if arguments.dry_run or not _is_trained(arguments.output):
        from s2uniseg_d2.engine.command import execute

        status = execute(words, NAME)
        if status or arguments.dry_run:
            return status
    return _draw(arguments)


def _prepare(arguments: argparse.Namespace) -> argparse.Namespace:
    """Check words and pictures, note them in the run's folder; returns the words of the training command.

    Raises:
        ValueError: if the folder holds a run with other words, or the pictures are too few.
    """
    from s2uniseg_d2.config import load_config
    from s2uniseg_d2.engine.checkpoint_files import resume_candidates

    output: Path = arguments.output
    config = _choose_recipe(arguments)
    folders = [_folder(folder) for folder in arguments.pictures]
    for folder in folders:
        if output == folder or folder in output.parents:
            raise ValueError(f"--output must lie outside of the pictures, for it will hold pictures: {output}")
    words = _overrides(arguments)
    load_config(config, words)  # a misspelt key is found before the pictures are read
    request = {"pictures": [str(folder) for folder in folders], "recipe": str(config), "changes": words}
    # a run may go on elsewhere: the device is no part of what it is
    words = [*words, *(["MODEL.DEVICE", arguments.device] if arguments.device else []), "OUTPUT_DIR", str(output)]
    if arguments.dry_run:
        _say(_select(folders).describe())
        names = [f"folder:{folder}" for folder in folders]
    else:
        _note(output, request, folders)
        names = [f"list:{output / 'pictures.txt'}"]
    return argparse.Namespace(
        config_file=str(config),
        resume=bool(resume_candidates(output)),
        eval_only=False,
        dry_run=arguments.dry_run,
        num_gpus=1,
        num_machines=1,
        machine_rank=0,
        dist_url="auto",
        opts=[*words, "DATASETS.TRAIN", str(tuple(names))],
    )


def _note(output: Path, request: dict[str, Any], folders: list[Path]) -> None:
    """Write down what is asked for and which pictures it is about, or check that it is what was asked before."""
    from s2uniseg_d2.evaluation.whole_files import write_json
    from s2uniseg_d2.labeling.picture_selection import write_selection

    stamp, chosen = output / "own_pictures.json", output / "pictures.txt"
    if stamp.is_file():
        before = json.loads(stamp.read_text(encoding="utf-8"))
        if before != request:
            changed = ", ".join(key for key in request if before.get(key) != request[key])
            raise ValueError(
                f"{output} holds a run with other words ({changed}): use those of {stamp}, or name another --output"
            )
        _say([f"going on with the pictures of {chosen}: what was added to the folders since is for a new --output"])
        return
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"--output must be a new or empty folder, or one of this command, got {output}")
    selection = _select(folders)
    _say(selection.describe())
    write_selection(chosen, selection)
    write_json(stamp, request, indent=1)


def _select(folders: list[Path]) -> Any:
    from s2uniseg_d2.labeling.picture_selection import select_pictures

    _say([f"looking at the pictures below {', '.join(map(str, folders))}"])
    return select_pictures(folders)


def _choose_recipe(arguments: argparse.Namespace) -> Path:
    import torch

    recipe = arguments.recipe
    if recipe is None:
        recipe = "gpu" if torch.cuda.is_available() and arguments.device != "cpu" else "cpu"
        _say([f"recipe {recipe}: a GPU is {'there' if recipe == 'gpu' else 'not used'}; --recipe chooses another"])
    if recipe not in RECIPES:
        return Path(recipe).expanduser().absolute()
    config = CONFIGS / f"own_pictures_{recipe}.yaml"
    if not config.is_file():
        raise ValueError(f"the recipe {recipe} is a file of the repository that is not here ({config}): name a YAML")
    return config


def _overrides(arguments: argparse.Namespace) -> list[str]:
    words: list[str] = []
    if arguments.weights is not None:
        words += ["MODEL.VIT.WEIGHTS", arguments.weights]
    if arguments.iterations is not None:
        words += ["SOLVER.MAX_ITER", str(arguments.iterations)]
    return [*words, *(word for word in arguments.opts if word != "--")]


def _is_trained(output: Path) -> bool:
    return (output / "model_final.pth").is_file()


def _draw(arguments: argparse.Namespace) -> int:
    """Let the demo draw the gallery; returns the exit status."""
    from s2uniseg_d2 import demo
    from s2uniseg_d2.data.picture_check import draw_sample
    from s2uniseg_d2.data.picture_folder import read_picture_list

    output: Path = arguments.output
    weights, gallery = output / "model_final.pth", output / "gallery"
    paths = read_picture_list(output / "pictures.txt")
    shown = [paths[place] for place in draw_sample(len(paths), arguments.gallery, seed=0)]
    words = ["--weights", str(weights), "--output", str(gallery), "--overwrite", "--input", *shown]
    if arguments.device is not None:
        words += ["--device", arguments.device]
    status = demo.main(words)
    if status == 0:
        _say(
            [
                f"weights   {weights}",
                f"gallery   {gallery / 'index.html'}: {len(shown)} of {len(paths)} pictures, to open in a browser",
                f"training  {output / 'pictures'}: what teacher and student saw; {output / 'log.txt'}",
                f"next      python -m s2uniseg_d2.demo --weights {weights} --input OTHER_PICTURES --output MASKS",
            ]
        )
    return status


def _say(lines: list[str]) -> None:
    sys.stdout.write("".join(f"{printable(line)}\n" for line in lines))
    sys.stdout.flush()


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def make_parser() -> argparse.ArgumentParser:
    """The command's words."""
    parser = argparse.ArgumentParser(
        prog=f"python -m s2uniseg_d2.{NAME}",
        description=__doc__,
        epilog=EPILOG + HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("pictures", nargs="+", metavar="PICTURES", help="folders of pictures, looked through with all below them")
    add("--output", type=_folder, required=True, metavar="RUN", help="folder of the run, outside of PICTURES")
    add("--recipe", help="cpu, gpu or a YAML file (default: gpu where there is one)")
    add("--device", help="cpu, cuda, cuda:1 ... (default: the recipe's, or the CPU where that is not there)")
    add("--weights", metavar="WHAT", help='of the ViT: timm, a DINO file, or "" for random (default: the recipe\'s)')
    add("--iterations", type=_positive, metavar="N", help="steps of training (default: the recipe's)")
    add("--gallery", type=_positive, default=50, metavar="N", help="pictures in the gallery (default: 50)")
    add("--dry-run", action="store_true", help="check the pictures, measure memory and time; writes nothing")
    add("--resume", action="store_true", help="go on after a stop, which happens without it as well")
    add(
        "--set",
        dest="opts",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY VALUE",
        help="changes of the recipe, in pairs",
    )
    return parser


def _folder(text: str) -> Path:
    # without ".." and links, so that one folder has one name and what lies in it can be told
    return Path(text).expanduser().resolve()


if __name__ == "__main__":
    sys.exit(main())
