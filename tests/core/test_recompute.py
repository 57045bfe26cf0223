from __future__ import annotations

import torch

from s2uniseg_d2.core.recompute import call


def test_what_is_called_is_called_again_and_only_with_a_gradient():
    calls = []

    def double(x):
        calls.append(1)
        return 2 * x.exp()

    x = torch.zeros(3, requires_grad=True)
    for recomputes, times in ((False, 1), (True, 2)):
        calls.clear()
        call(double, x, recomputes=recomputes).sum().backward()
        assert len(calls) == times
    with torch.no_grad():
        calls.clear()
        assert torch.equal(call(double, x, recomputes=True), torch.full((3,), 2.0))
        assert len(calls) == 1
    assert torch.equal(x.grad, torch.full((3,), 4.0))
