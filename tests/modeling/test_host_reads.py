"""How often one training step reads the device: what is not listed here would stall a GPU without need."""

from __future__ import annotations

import pytest
import torch
from detectron2.modeling import build_model

import s2uniseg_d2.modeling  # noqa: F401  (registers)
from tests.host_reads import HostReads
from tests.tiny import random_batch, tiny_config

PICTURES, VIEWS = 3, 2
# (module, function, what): times, and why it is there
EXPECTED = {
    # one read of which masks each view still sees, before anything of the student is queued; sizes depend on it
    ("modeling/targets.py", "crop_labels_to_views", "cpu"): 1,
    # the assignment runs on the CPU: the costs of all layers, groups and views go there in one copy
    ("core/losses/matching.py", "match_masks", "cpu"): 1,
    # flips and boxes are the mapper's and stay on the CPU: no wait
    ("modeling/targets.py", "_crop_to_all_views", "tolist"): 1,
    ("core/ops/masks.py", "_check_box", "tolist"): PICTURES * VIEWS,
}


@pytest.mark.parametrize("num_points", [0, 64])
def test_forward_backward_and_momentum_read_the_device_twice(num_points):
    torch.manual_seed(0)
    model = build_model(tiny_config(MODEL__LOSS__NUM_POINTS=num_points))
    batch = random_batch(PICTURES, VIEWS)
    for item, labels in zip(batch, model.label(batch), strict=True):
        item["pseudo"] = labels
    with HostReads() as reads:
        losses = model(batch)
        sum(losses.values()).backward()
        model.update_teacher(0.9)
    assert dict(reads.sites) == EXPECTED


def test_reads_of_every_sort_are_noticed():
    values, mask = torch.arange(4.0), torch.tensor([True, False, True, True])
    with HostReads() as reads:
        values[0].item(), bool(mask[0]), float(values[1])
        values[mask]
        values[mask] = torch.ones(3)
        mask.nonzero()
        values.cpu(), values.tolist(), values.new_tensor([1.0])
    counts = {"item": 3, "mask index": 2, "nonzero": 1, "cpu": 1, "tolist": 1, "new_tensor": 1}
    assert reads.sites == {("", "", what): count for what, count in counts.items()}
    values.cpu()
    assert sum(reads.sites.values()) == 9
