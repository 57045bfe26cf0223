from __future__ import annotations

import pytest
import torch

from s2uniseg_d2.core.labelers.rounding import gamma
from s2uniseg_d2.core.ops import products
from s2uniseg_d2.core.ops.products import multiply


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.fixture(params=[True, False], ids=["linear", "plain"])
def linear(request, monkeypatch):
    """Both ways, wherever oneDNN is there at all."""
    if request.param and not products._rounds_to_float32("none", "none"):
        pytest.skip("this PyTorch has no linear layers of oneDNN in float32")
    monkeypatch.setattr(products, "_prefers_linear", lambda: request.param)


@pytest.mark.usefixtures("linear")
@pytest.mark.parametrize("width", [64, 768])
def test_products_keep_the_bound_of_float32_whatever_the_layout(width):
    a, b = draw(300, width), draw(width, 400)
    whole = draw(300, 3 * width), draw(3 * width, 400)
    cases = [
        (a, b),
        (a, b.T.contiguous().T),
        (a.T.contiguous().T, b),
        (whole[0][:, width : 2 * width], whole[1][width : 2 * width]),
        (a, whole[0].T[:width, :100]),
    ]
    for left, right in cases:
        truth = left.double() @ right.double()
        bound = gamma(width + 2) * (left.abs().double() @ right.abs().double())
        assert ((multiply(left, right).double() - truth).abs() <= bound).all()


@pytest.mark.usefixtures("linear")
def test_float64_and_small_products_are_plain_ones(monkeypatch):
    monkeypatch.setattr(products, "_apply_linear", None)  # a call would fail
    a, b = draw(300, 64).double(), draw(64, 400).double()
    assert torch.equal(multiply(a, b), a @ b)
    assert torch.equal(multiply(a[:2].float(), b.float()), a[:2].float() @ b.float())
    assert multiply(a[:0].float(), b.float()).shape == (0, 400)


@pytest.mark.parametrize(("rows", "padded"), [(5, 8), (16, 16), (17, 32), (200, 208), (208, 208), (209, 224)])
def test_few_shapes_of_products_come_up(monkeypatch, rows, padded):
    shapes, linear = [], products._apply_linear
    if not products._rounds_to_float32("none", "none"):
        pytest.skip("this PyTorch has no linear layers of oneDNN in float32")
    monkeypatch.setattr(products, "_prefers_linear", lambda: True)
    monkeypatch.setattr(products, "_apply_linear", lambda a, b: shapes.append(tuple(a.shape)) or linear(a, b))
    a, b = draw(rows, 64), draw(64, 1000)
    assert torch.allclose(multiply(a, b), a @ b, atol=1e-4)
    assert shapes == [(padded, 64)]


def test_half_precision_is_found_out(monkeypatch):
    def halve(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a.bfloat16().float() @ b.bfloat16().float()).float()

    monkeypatch.setattr(products, "_apply_linear", halve)
    assert not products._rounds_to_float32.__wrapped__("none", "none")
    monkeypatch.setattr(products, "_apply_linear", torch.mm)
    assert products._rounds_to_float32.__wrapped__("none", "none")


def test_an_operator_that_is_not_there_is_not_used(monkeypatch):
    def refuse(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        raise AttributeError("no such operator")

    monkeypatch.setattr(products, "_apply_linear", refuse)
    assert not products._rounds_to_float32.__wrapped__("none", "none")


def test_the_settings_are_asked_every_time(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    asked = []
    monkeypatch.setattr(products, "_rounds_to_float32", lambda *settings: bool(asked.append(settings)))
    previous = torch.get_float32_matmul_precision()
    try:
        for precision in ("highest", "medium"):
            torch.set_float32_matmul_precision(precision)
            products._prefers_linear()
    finally:
        torch.set_float32_matmul_precision(previous)
    assert [settings[0] for settings in asked] == ["highest", "medium"]
