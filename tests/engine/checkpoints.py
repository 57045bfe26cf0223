"""Comparison of checkpoints to the last bit."""

from __future__ import annotations

import torch


def differing(a, b, name=""):
    """Names of the leaves in which two checkpoints differ by a bit."""
    if isinstance(a, torch.Tensor):
        return [] if torch.equal(a, b) else [name]
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        return [leaf for key in a for leaf in differing(a[key], b[key], f"{name}.{key}")]
    if isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        return [leaf for i, (x, y) in enumerate(zip(a, b, strict=True)) for leaf in differing(x, y, f"{name}.{i}")]
    return [] if a == b else [name]


def is_of_the_machine(name):
    """Whether a figure of the record is of time or memory, which no two runs share."""
    return any(word in name for word in ("time", "second", "memory"))


def read(path):
    """A checkpoint without what it says of the machine."""
    content = torch.load(path, weights_only=True)
    for figures in content["trainer"]["hooks"]["RecordHook"].values():
        for name in list(filter(is_of_the_machine, figures)):
            del figures[name]
    return content
