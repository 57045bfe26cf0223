from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from tests.tiny import tiny_config, tiny_words
from tools.training_cost import FULL, GPU, GPUS, HALF, Operations, count_picture, gpu_hours, main, report


def test_operations_are_counted_by_part_and_precision():
    layer, kernel = nn.Linear(6, 5), nn.Conv2d(3, 4, 3, bias=False)
    operations = Operations()
    with operations:
        with operations.of("plain"):
            layer(torch.zeros(7, 6))
            with operations.of("inner"):
                kernel(torch.zeros(2, 3, 9, 8))
            layer(torch.zeros(7, 6))
        with operations.of("mixed"), torch.autocast("cpu", dtype=torch.bfloat16):
            layer(torch.zeros(7, 6))
    counts = {part: dict(found) for part, found in operations.counts.items()}
    assert counts == {
        "plain": {FULL: 2 * 2 * 7 * 6 * 5},
        "inner": {FULL: 2 * (2 * 7 * 6) * 4 * 3 * 9},
        "mixed": {HALF: 2 * 7 * 6 * 5},
    }


def test_a_steps_parts_are_all_there_and_recomputing_costs_the_backward_pass_most_of_a_forward_pass():
    plain = count_picture(tiny_config(SOLVER__AMP__ENABLED=True))
    assert set(plain) == {"teacher", "UniAP", "student, matching, losses", "backward"}
    student, backward = (sum(plain[part].values()) for part in ("student, matching, losses", "backward"))
    assert 1.5 * student < backward < 2.5 * student
    assert plain["student, matching, losses"][HALF] > 0
    again = count_picture(tiny_config(MODEL__RECOMPUTE=True, SOLVER__AMP__ENABLED=True))
    assert again["student, matching, losses"] == plain["student, matching, losses"]
    assert backward + 0.4 * student < sum(again["backward"].values()) < backward + student
    exact = count_picture(tiny_config())
    assert all(HALF not in counts for counts in exact.values())


def test_hours_are_operations_over_rates():
    picture = {"a": {HALF: 2 * 10**12, FULL: 10**12}, "b": {HALF: 10**12}}
    assert gpu_hours(picture, 3600, GPU(half=3.0, float32=0.5), 0.5) == pytest.approx((1 + 2) / 0.5)
    text = report(picture, tiny_config(SOLVER__IMS_PER_BATCH=4, SOLVER__MAX_ITER=900), [0.5])
    assert "A step of 4 pictures: 16.0 x 10^12; 900 steps: 0.01 x 10^18." in text
    for name in GPUS:
        assert f"| {name} | " in text


def test_the_command_prints_what_it_wrote(tmp_path, capsys):
    assert main(["--config-file", "", "--json", str(tmp_path / "counts.json"), *tiny_words()]) == 0
    counts = json.loads((tmp_path / "counts.json").read_text())
    printed = capsys.readouterr().out
    assert f"| backward | 0.0 | {counts['backward'][FULL] / 1e9:.1f} |" in printed
    assert main(["--config-file", "nowhere.yaml"]) == 1
    assert "config file does not exist" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--utilisation", "1.5"])
