"""The exported model says what PyTorch says, and its outputs become the same predictions."""

from __future__ import annotations

import json

import pytest
import torch
from detectron2.modeling import build_model

from s2uniseg_d2.engine.model_export import (
    InferenceNetwork,
    compare,
    load_onnx,
    load_program,
    predict_from_outputs,
)
from tests.tiny import tiny_config
from tools.export_model import main, read_size

TORCH = tuple(map(int, torch.__version__.split(".")[:2]))
# as few layers as the parts allow: tracing takes its time by the layer
FEW = {
    "MODEL__VIT_ADAPTER__EXTRA_EXTRACTORS": 0,
    "MODEL__QUERY_HEAD__DECODER_LAYERS": 1,
    "MODEL__VIT__PATCH_SIZE": 14,
    "MODEL__INFERENCE__OBJECT_THRESHOLD": 0.0,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    torch.manual_seed(0)
    cfg = tiny_config(**FEW)
    model = build_model(cfg).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.1 * torch.randn_like(value))
    folder = tmp_path_factory.mktemp("run")
    torch.save({"model": model.state_dict()}, folder / "model_final.pth")
    (folder / "config.yaml").write_text(cfg.dump())
    return model, folder


def assert_same_predictions(model, outputs, picture):
    expected = model.predict([{"image": picture, "height": 90, "width": 130}])[0]
    got = predict_from_outputs(model, outputs, tuple(picture.shape[1:]), (90, 130))
    assert len(expected["instances"]) > 0
    assert torch.allclose(got["instances"].scores, expected["instances"].scores, atol=1e-4)
    assert torch.equal(got["instances"].pred_classes, expected["instances"].pred_classes)
    # a pixel on the very edge may fall to the other side of a threshold
    assert (got["instances"].pred_masks != expected["instances"].pred_masks).float().mean() < 1e-3
    assert (got["sem_seg_labels"] != expected["sem_seg_labels"]).float().mean() < 1e-3


def test_the_network_gives_what_predict_sees_at_its_size_alone(run):
    model, _ = run
    network = InferenceNetwork(model, (64, 96))
    picture = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)
    with torch.no_grad():
        assert_same_predictions(model, network(picture[None].float()), picture)
    with pytest.raises(ValueError, match=r"size must be rows and columns that are multiples of 32, got \(64, 100\)"):
        InferenceNetwork(model, (64, 100))


@pytest.mark.slow
@pytest.mark.skipif(TORCH < (2, 6), reason="the exporter needs torch 2.6 or newer")
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning:torch")
def test_both_formats_agree_with_pytorch(run, tmp_path, capsys):
    model, folder = run
    assert main([str(folder / "model_final.pth"), "--output", str(tmp_path), "--size", "64x96", "--runs", "2"]) == 0
    record = json.loads((tmp_path / "export.json").read_text())
    assert [row["file"] for row in record["files"]] == ["s2uniseg_64x96.onnx", "s2uniseg_64x96.pt2"]
    assert record["queries"] == {"ins": [0, 6], "sem": [6, 10]}
    printed = capsys.readouterr().out
    assert printed.count("medians of 2") == 2

    import onnx

    graph = onnx.load(tmp_path / "s2uniseg_64x96.onnx")
    assert {opset.domain: opset.version for opset in graph.opset_import} == {"": 18}
    assert {node.domain for node in graph.graph.node} == {""}
    assert not graph.functions

    picture = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)
    onnx_run, program_run = (
        load_onnx(tmp_path / "s2uniseg_64x96.onnx", 1),
        load_program(tmp_path / "s2uniseg_64x96.pt2"),
    )
    for exported in (onnx_run, program_run):
        assert_same_predictions(model, exported(picture[None].float()), picture)
    # and the comparison sees a difference
    changed = InferenceNetwork(model, (64, 96))
    with torch.no_grad():
        changed.decoder.predictor.mask_embed.layers[2].bias.add_(0.5)
    with pytest.raises(ValueError, match="mask_logits must be PyTorch's within"):
        compare(changed, onnx_run, 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name a checkpoint, or a --config-file"),
        (
            ["--config-file", "configs/tiny.yaml", "--size", "64"],
            "--size must be ROWSxCOLUMNS, such as 480x640, got '64'",
        ),
        (["--config-file", "configs/tiny.yaml", "--runs", "0"], "--runs must be at least 1, got 0"),
        (["nowhere/model.pth"], "config file does not exist"),
    ],
)
def test_what_cannot_be_exported_is_named(words, message, capsys, repository, monkeypatch, tmp_path):
    monkeypatch.chdir(repository)
    assert main([*words, "--output", str(tmp_path / "new")]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_sizes_are_rows_and_columns():
    assert read_size("480x640") == (480, 640)
