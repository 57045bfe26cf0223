from __future__ import annotations

import os

import pytest

from s2uniseg_d2.core.ops import kernels

# Set before Triton is imported, it has its interpreter run the kernels, on the CPU.
INTERPRETS = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.fixture(autouse=INTERPRETS)
def _run_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "has_kernels", lambda device: True)
