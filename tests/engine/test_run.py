"""What a run does before its first step."""

from __future__ import annotations

import argparse
import os

import pytest

from s2uniseg_d2.config import load_config
from s2uniseg_d2.engine import run
from tests.tiny import tiny_config


def test_the_config_is_kept_whole_whatever_happens(tmp_path, monkeypatch):
    args = argparse.Namespace(eval_only=True)
    kept = tmp_path / "config.yaml"
    run._begin(tiny_config(OUTPUT_DIR=str(tmp_path), SOLVER__MAX_ITER=7), args)
    assert load_config(str(kept)).SOLVER.MAX_ITER == 7
    assert "MAX_ITER: 7" in (tmp_path / "log.txt").read_text()

    def end(_):
        raise OSError("the disk fails")

    # the bytes are there, but nobody knows whether they stay
    monkeypatch.setattr(os, "fsync", end)
    with pytest.raises(OSError, match=r"config\.yaml could not be written"):
        run._begin(tiny_config(OUTPUT_DIR=str(tmp_path), SOLVER__MAX_ITER=8), args)
    assert load_config(str(kept)).SOLVER.MAX_ITER == 7
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "log.txt"]
