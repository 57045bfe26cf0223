"""Every fault once; `make soak` injects each many times."""

from __future__ import annotations

import pytest

from tests.faults.soak import FAULTS, soak

pytestmark = [pytest.mark.faults, pytest.mark.slow]

SEED = 0


def test_every_fault_is_survived(tmp_path):
    names = list(FAULTS)
    found = soak(tmp_path, names, len(names), SEED, 1)
    said = "\n".join(f"{each['fault']}, {each['moment']}: {each['problems']}" for each in found if each["problems"])
    assert not [each for each in found if each["problems"] and not each["missed"]], said
    # a machine may forbid mounting, and may be too slow for a moment, but not for many or for all of a kind
    injected = [each["fault"] for each in found if not each["missed"]]
    assert len(injected) >= len(names) - 4, said
    assert {FAULTS[name].run for name in injected} == {fault.run for fault in FAULTS.values()}, said
