"""The inference model as one graph of plain operators, for programs without Detectron2."""

from __future__ import annotations

import copy
import io
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from s2uniseg_d2.core.structures import QueryPrediction
from s2uniseg_d2.modeling.prediction import predict_from_queries
from s2uniseg_d2.modeling.s2uniseg import S2UniSeg

from .checkpoint_files import write_whole

OPSET = 18
INPUTS, OUTPUTS = ("pictures",), ("mask_logits", "objectness_logits", "class_logits")
TOLERANCE = 1e-3
_SIDE = 32


class InferenceNetwork(nn.Module):
    """The part of ``S2UniSeg.predict`` that has weights: the teacher's encoder, the student's decoder and both heads.

    Pictures come in RGB, 0 to 255, all of one size; the colours are normalised inside. The positions of the ViT are
    resampled to that size once, so that the graph holds no resampling of them.

    Args:
        model: copied, not changed.
        size: rows and columns of the pictures, multiples of 32.

    Raises:
        ValueError: if they are not.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, model: S2UniSeg, size: tuple[int, int]) -> None:
        super().__init__()
        if any(side <= 0 or side % _SIDE for side in size):
            raise ValueError(f"size must be rows and columns that are multiples of {_SIDE}, got {size}")
        self.size = size
        self.encoder = copy.deepcopy(model.teacher_backbone.trunk)
        vit: Any = self.encoder.vit
        vit.fix_grid(size[0] // 16, size[1] // 16)
        self.decoder = copy.deepcopy(model.sem_seg_head)
        self.query_proj = copy.deepcopy(model.query_proj)
        self.head = copy.deepcopy(model.teacher_head)
        # the norms of the prototypes are applied once, here, and not in every run
        prototypes = model.teacher_head.last_layer.weight.detach()
        plain = nn.Linear(prototypes.shape[1], prototypes.shape[0], bias=False)
        with torch.no_grad():
            plain.weight.copy_(prototypes)
        self.head.last_layer = plain
        self.register_buffer("pixel_mean", model.pixel_mean.clone())
        self.register_buffer("pixel_std", model.pixel_std.clone())
        self.requires_grad_(False).eval()

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """From pictures ``(b, 3, H, W)`` to what each query says.

        Returns:
            mask logits ``(b, q, H / 4, W / 4)``, a pixel belongs to a mask where they are above 0; logits of (object,
            no object) ``(b, q, 2)``; logits of the K pseudo-classes ``(b, q, K)``. Instance queries come first.
        """
        features = self.encoder((pictures - self.pixel_mean) / self.pixel_std)
        final = self.decoder(features._asdict())[-1]
        return final.masks, final.objectness, self.head(self.query_proj(final.queries))


def predict_from_outputs(
    model: S2UniSeg, outputs: tuple[Any, ...], size: tuple[int, int], output_size: tuple[int, int]
) -> dict[str, Any]:
    """What ``S2UniSeg.predict`` says of one picture, from the outputs of an exported model.

    Args:
        model: for its settings alone.
        outputs: the three arrays or tensors of one picture, with a batch axis of 1.
        size: rows and columns of the exported model's input, all of them picture.
        output_size: rows and columns of the result.
    """
    masks, objectness, classes = (
        value if isinstance(value, Tensor) else torch.from_numpy(np.array(value)) for value in outputs
    )
    prediction = QueryPrediction(masks=masks[0], objectness=objectness[0], queries=torch.empty(0))
    return predict_from_queries(
        prediction,
        classes[0].argmax(dim=-1),
        model.sem_seg_head.slices,
        model.prediction,
        padded_size=size,
        image_size=size,
        output_size=output_size,
    )


def trace(network: InferenceNetwork) -> torch.export.ExportedProgram:
    """The network as a graph for one picture at a time; both formats are written from it."""
    return torch.export.export(network, (torch.zeros(1, 3, *network.size),))


def write_onnx(program: torch.export.ExportedProgram, path: Path) -> None:
    """Write a traced network as ONNX, weights included, whole or not at all.

    Raises:
        ValueError: if onnx and onnxscript are not installed, or PyTorch is older than 2.6.
        OSError: if it cannot be written.
    """
    require("onnx", "onnxscript")
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 6):
        raise ValueError(f"writing ONNX needs torch 2.6 or newer, got {torch.__version__}")
    translated = torch.onnx.export(
        program,
        dynamo=True,
        opset_version=OPSET,
        input_names=list(INPUTS),
        output_names=list(OUTPUTS),
        verbose=False,
    )
    assert translated is not None
    # in memory first: torch's own writer leaves a half of a file where it is stopped
    write_whole(path, lambda file: file.write(translated.model_proto.SerializeToString()))


def write_program(program: torch.export.ExportedProgram, path: Path) -> None:
    """Write a traced network as a ``torch.export`` program (``.pt2``), whole or not at all.

    Raises:
        OSError: if it cannot be written.
    """
    whole = io.BytesIO()
    torch.export.save(program, whole)
    write_whole(path, lambda file: file.write(whole.getvalue()))


def load_onnx(path: Path, threads: int) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """A function that runs an ONNX file on the CPU, from pictures to outputs.

    Raises:
        ValueError: if onnxruntime is not installed.
    """
    require("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(pictures: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.from_numpy(value) for value in session.run(None, {INPUTS[0]: pictures.numpy()}))

    return run


def load_program(path: Path) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """A function that runs a ``.pt2`` file, from pictures to outputs. It holds a program: load only what you trust."""
    module = torch.export.load(path).module()
    return lambda pictures: tuple(module(pictures))


class Comparison(NamedTuple):
    """An exported file beside PyTorch.

    Attributes:
        difference: the largest of every output, relative to the largest value of that output or 1.
        seconds: median of a picture, of the file.
        reference_seconds: likewise, of PyTorch.
        runs: how many each median is of.
    """

    difference: float
    seconds: float
    reference_seconds: float
    runs: int


@torch.no_grad()
def compare(network: InferenceNetwork, run: Callable[[Tensor], tuple[Tensor, ...]], runs: int = 5) -> Comparison:
    """Run both on the same random pictures and time them in turn.

    Raises:
        ValueError: if an output differs in shape, or by more than ``TOLERANCE`` relative to its largest value or 1.
    """
    generator = torch.Generator().manual_seed(0)
    pictures = 255 * torch.rand(1, 3, *network.size, generator=generator)
    worst = 0.0
    for name, expected, got in zip(OUTPUTS, network(pictures), run(pictures), strict=True):
        if expected.shape != got.shape:
            raise ValueError(f"{name} must be {tuple(expected.shape)}, got {tuple(got.shape)}")
        difference = float((expected - got).abs().max() / expected.abs().max().clamp(min=1.0))
        if not difference <= TOLERANCE:
            raise ValueError(f"{name} must be PyTorch's within {TOLERANCE}, got a difference of {difference:.2g}")
        worst = max(worst, difference)
    seconds: tuple[list[float], list[float]] = [], []
    for _ in range(runs):
        seconds[0].append(_seconds_of(run, pictures))
        seconds[1].append(_seconds_of(network, pictures))
    return Comparison(worst, statistics.median(seconds[0]), statistics.median(seconds[1]), runs)


def _seconds_of(function: Callable[[Tensor], object], pictures: Tensor) -> float:
    start = time.perf_counter()
    function(pictures)
    return time.perf_counter() - start


def require(*packages: str) -> None:
    """Return if these packages can be imported.

    Raises:
        ValueError: naming the missing ones and what installs them.
    """
    from importlib.util import find_spec

    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise ValueError(f"exporting needs {', '.join(missing)}: pip install 's2uniseg_d2[export]'")
