"""Downloads can be switched off."""

import pytest
import timm

from s2uniseg_d2.labeling.encoder import build_encoder
from tests.tiny import tiny_config


def test_a_name_is_refused_offline_before_anything_is_fetched(monkeypatch):
    monkeypatch.setenv("S2UNISEG_OFFLINE", "1")
    monkeypatch.setattr(timm, "create_model", lambda *words, **more: pytest.fail("timm was asked"))
    for ask in (lambda cfg: build_encoder(cfg, "vit_tiny_patch16_224"), lambda cfg: build_encoder(cfg, "timm")):
        with pytest.raises(ValueError, match=r"must be a file while S2UNISEG_OFFLINE is set"):
            ask(tiny_config())


def test_files_and_random_weights_need_no_download(monkeypatch):
    monkeypatch.setenv("S2UNISEG_OFFLINE", "1")
    assert build_encoder(tiny_config(), "") is not None
