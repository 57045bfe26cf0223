from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.tiny import write_pictures

# peak memory of the run below in kilobytes, on its last line
RUN = """
import resource, sys
from train_net import main
status = main(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
sys.exit(status)
"""


@pytest.mark.slow
def test_the_papers_recipe_takes_a_step_on_the_cpu_within_16_gb(repository, tmp_path):
    pictures = write_pictures(tmp_path / "pictures", count=2, size=(480, 640))
    words = [
        "--config-file", "configs/s2uniseg_in1k.yaml",
        "DATASETS.TRAIN", f"('folder:{pictures}',)",
        "MODEL.VIT.WEIGHTS", "",  # the real weights need a network
        "SOLVER.IMS_PER_BATCH", "2",  # what each of eight GPUs gets of the recipe's 16
        "SOLVER.MAX_ITER", "1",
        "DATALOADER.NUM_WORKERS", "0",
        "OUTPUT_DIR", str(tmp_path / "out"),
    ]  # fmt: skip
    result = subprocess.run(
        [sys.executable, "-c", RUN, *words], cwd=repository, capture_output=True, text=True, timeout=850
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert int(result.stdout.split()[-1]) < 16e6
    recorded = json.loads((tmp_path / "out" / "metrics.json").read_text().splitlines()[-1])
    assert recorded["total_loss"] > 0
    assert {f"loss_dice_ins_{layer}" for layer in range(9)} | {"loss_dice_ins", "loss_query_sd"} <= set(recorded)
    assert (tmp_path / "out" / "model_final.pth").stat().st_size > 500e6
