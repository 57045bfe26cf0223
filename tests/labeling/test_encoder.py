from __future__ import annotations

import pytest
import torch

from s2uniseg_d2.core.trunks.vit import TimmViT
from s2uniseg_d2.labeling.encoder import build_encoder, digest
from s2uniseg_d2.modeling import S2UniSeg
from tests.tiny import tiny_config


def differ(first, second):
    return [name for name, value in first.state_dict().items() if not torch.equal(value, second.state_dict()[name])]


@pytest.fixture(scope="module")
def model():
    """A model whose teacher is not its student."""
    torch.manual_seed(3)
    model = S2UniSeg(tiny_config())
    with torch.no_grad():
        for parameter in model.teacher_backbone.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    return model


def test_random_weights_come_from_the_seed_and_leave_torchs_generator_alone(caplog):
    state = torch.get_rng_state()
    first = build_encoder(tiny_config(), "")
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(1)
    assert digest(build_encoder(tiny_config(), "")) == digest(first)
    assert digest(build_encoder(tiny_config(SEED=1), "")) != digest(first)
    assert "the encoder's are random, drawn with SEED 1" in caplog.text
    assert not first.training
    assert not any(parameter.requires_grad for parameter in first.parameters())


@pytest.mark.parametrize("by_config", [False, True])
def test_a_checkpoint_of_the_trainer_gives_the_teachers_encoder(model, tmp_path, by_config):
    path = tmp_path / "model_final.pth"
    torch.save({"model": model.state_dict(), "iteration": 3}, path)
    if by_config:
        encoder = build_encoder(tiny_config(MODEL__WEIGHTS=path), None)
    else:
        encoder = build_encoder(tiny_config(), str(path))
    assert differ(encoder, model.teacher_backbone) == []
    assert differ(encoder, model.backbone) != []


def test_a_teacher_that_is_not_finite_is_refused(model, tmp_path):
    state = {name: value.clone() for name, value in model.state_dict().items()}
    state["teacher_backbone.trunk.up.bias"][0] = float("nan")
    torch.save({"model": state}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"w\.pth' holds NaN or infinity in 1 of \d+ tensors .trunk\.up\.bias"):
        build_encoder(tiny_config(), str(tmp_path / "w.pth"))


def test_a_file_of_a_vit_gives_the_vit_and_leaves_the_adapter_fresh(model, tmp_path):
    path = tmp_path / "dino.pth"
    torch.save(model.teacher_backbone.trunk.vit.state_dict(), path)
    encoder = build_encoder(tiny_config(), str(path))
    assert differ(encoder.trunk.vit, model.teacher_backbone.trunk.vit) == []
    assert not encoder.trunk.up.weight.any()


def test_the_name_of_a_timm_model_is_fetched(monkeypatch):
    seen = []

    def fetch(self, name, *, pretrained, **sizes):
        seen.append((name, pretrained))
        raise ValueError("no network in tests")

    monkeypatch.setattr(TimmViT, "__init__", fetch)
    with pytest.raises(ValueError, match="no network"):
        build_encoder(tiny_config(), "vit_small_patch8_224.dino")
    assert seen == [("vit_small_patch8_224.dino", True)]


def test_a_checkpoint_of_another_size_is_refused_with_advice(model, tmp_path):
    path = tmp_path / "model_final.pth"
    torch.save({"model": model.state_dict()}, path)
    with pytest.raises(ValueError, match=r"do not fit the config: \d+ of \d+ tensors .*; name the config file"):
        build_encoder(tiny_config(MODEL__VIT__EMBED_DIM=96), str(path))


@pytest.mark.parametrize("content", [b"", b"no checkpoint", None])
def test_a_file_that_holds_no_weights_is_refused(tmp_path, content):
    path = tmp_path / "weights.pth"
    path.write_bytes(content) if content is not None else torch.save({"epoch": 3}, path)
    with pytest.raises(ValueError, match=r"weights\.pth"):
        build_encoder(tiny_config(), str(path))


@pytest.mark.parametrize("weights", ["/nowhere/weights.pth", "vit_enormous", "weights.pth"])
def test_weights_that_are_nowhere_are_refused(weights):
    with pytest.raises(ValueError, match="weights must be '', the name of a timm model or a file that exists"):
        build_encoder(tiny_config(), weights)


def test_the_digest_knows_names_shapes_and_values():
    layers = [torch.nn.Linear(2, 3, bias=False), torch.nn.Linear(3, 2, bias=False)]
    with torch.no_grad():
        layers[1].weight.copy_(layers[0].weight.view(2, 3))
    texts = {digest(layers[0]), digest(layers[1]), digest(torch.nn.ModuleDict({"a": layers[0]}))}
    with torch.no_grad():
        layers[0].weight[0, 0] += 1
    assert len({*texts, digest(layers[0])}) == 4
