"""Training runs that differ only in how their batches are shared out, and what a process of several does with them."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm

from s2uniseg_d2.core.ops.deformable import MSDeformAttn
from s2uniseg_d2.core.structures import PseudoLabels
from s2uniseg_d2.engine.hooks import unwrap
from s2uniseg_d2.engine.processes import count_processes, start
from s2uniseg_d2.engine.trainer import Trainer
from tests.tiny import SHARED, tiny_config

BATCH, STEPS = 4, 3
RUNS = {
    "even": {},
    "one rank without masks": {"bare": (0, 1)},
    "uneven masks": {"bare": (1, 2, 3)},
    "no masks at all": {"bare": (0, 1, 2, 3)},
}


class Recorder(HookBase):
    """Keeps the losses of every step."""

    def __init__(self):
        self.losses = []

    def after_step(self):
        latest = self.trainer.storage.latest()
        # only the main process has any
        names = [name for name in latest if name.startswith(("loss_", "total_loss"))]
        self.losses.append({name: latest[name][0] for name in names})


def train(folder: Path, name: str, *, bare: tuple[int, ...] = (), steps: int = STEPS, **more):
    """Losses of every step, and the model's state before and after; ``bare`` places of every batch have no masks.

    Pictures have several sizes. All that is drawn is drawn, but nothing stands at an edge that rounding would tip: no
    choice between logits, and no deformable sample on the centre of a cell, where its gradient jumps and where the
    published start puts them all.
    """
    settings = {
        **SHARED,
        "DATASETS__TRAIN": f"('folder:{folder / 'pictures'}',)",
        # the runs of one process and of two go on at the same time
        "OUTPUT_DIR": folder / f"{name.replace(' ', '_')}_by_{comm.get_world_size()}",
        "SOLVER__IMS_PER_BATCH": BATCH,
        "SOLVER__MAX_ITER": steps,
        "MODEL__LOSS__IMPORTANCE_RATIO": 0.0,
        "MODEL__QUERY_SD__FREEZE_LAST_LAYER_ITERS": 1,
        "MODEL__TEACHER__MOMENTUM": 0.5,
        "MODEL__TEACHER__MOMENTUM_END": 0.5,
    }
    cfg = tiny_config(**{**settings, **more})
    Path(cfg.OUTPUT_DIR).mkdir(exist_ok=True)
    torch.manual_seed(0)
    trainer = Trainer(cfg)
    model = unwrap(trainer.model)
    label = model.label
    with torch.no_grad():
        for part in model.modules():
            if isinstance(part, MSDeformAttn):
                part.sampling_offsets.bias += torch.empty_like(part.sampling_offsets.bias).uniform_(0.1, 0.4)
    model.copy_student_to_teacher()
    start_state = {name: value.clone() for name, value in model.state_dict().items()}

    def label_some(batch):
        found = []
        for item, labels in zip(batch, label(batch), strict=True):
            empty = PseudoLabels(*(type(kind)(*(value[:0] for value in kind)) for kind in labels))
            found.append(empty if item["draw"] % BATCH in bare else labels)
        return found

    model.label = label_some
    recorder = Recorder()
    trainer.register_hooks([recorder])
    trainer.resume_or_load(resume=False)
    trainer.train()
    return recorder.losses, start_state, model.state_dict()


def train_all(folder: Path, steps: int = STEPS):
    """All runs, and the first one with its gradients accumulated as well."""
    found = {name: train(folder, name, steps=steps, **options) for name, options in RUNS.items()}
    per_process = BATCH // comm.get_world_size()
    found["accumulated"] = train(folder, "accumulated", steps=steps, SOLVER__ACCUMULATION_STEPS=per_process)
    return found


def work(folder: Path):
    found = train_all(folder)
    states = {name: comm.all_gather(state) for name, (_, _, state) in found.items()}
    if comm.is_main_process():
        losses = {name: losses for name, (losses, _, _) in found.items()}
        torch.save({"losses": losses, "states": states}, folder / "found.pth")


if __name__ == "__main__":
    torch.set_num_threads(1)
    start(work, count_processes("cpu", 1, 1), Path(sys.argv[1]), device="cpu")
