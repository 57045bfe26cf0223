"""Run a Detectron2 training script that knows nothing of this project with its backbone, unchanged.

    python -m s2uniseg_d2.transfer train_net.py --config-file configs/transfer/mask_rcnn_vit_adapter.yaml --num-gpus 8

The script is Detectron2's own ``tools/train_net.py``, ``tools/plain_train_net.py``, or any other that takes its config
from ``get_cfg``; all words behind its name are its own. docs/transfer.md has the two lines that do the same in a script
of yours.
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

# see train_net.py
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from s2uniseg_d2._detectron2 import require_detectron2

USAGE = f"usage: python -m s2uniseg_d2.transfer SCRIPT [words of the script ...]\n\n{__doc__}"


def main(arguments: list[str] | None = None) -> int:
    """Install the backbone and run the script as if it had been called; returns the exit status."""
    words = sys.argv[1:] if arguments is None else arguments
    if not words or words[0] in ("-h", "--help"):
        stream = sys.stdout if words else sys.stderr
        stream.write(USAGE)
        return 0 if words else 2
    script = Path(words[0])
    if not script.is_file():
        sys.stderr.write(f"s2uniseg_d2.transfer: the script must be a file, got {words[0]!r}, where there is none\n")
        return 2
    try:
        require_detectron2()
    except ImportError as error:
        sys.stderr.write(f"s2uniseg_d2.transfer: {error}\n")
        return 1
    from s2uniseg_d2.engine.transfer import install

    install()
    # what Python itself does before it runs a script; the working directory stays importable, as with `python -m`
    sys.argv = [str(script), *words[1:]]
    sys.path.insert(0, str(script.resolve().parent))
    runpy.run_path(str(script), run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main())
