"""What stops a step whose figures are not finite, and what is kept so that it can be run again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Batch = Sequence[dict[str, Any]]

# float16 halves its scale after each step it leaves out: from 65536, so many in a row ask for gradients beyond 10^9
MOST_SKIPPED = 32


class NonFiniteStepError(FloatingPointError):
    """A step that was stopped before the optimizer, for a loss, a gradient or features that are not finite.

    Attributes:
        batch: this process's share; without ``pseudo`` labels if the teacher failed to make them.
        generators: states of PyTorch's generators at the start of the step, by kind of device.
        losses: of this process, as far as they are known.
        is_shared: whether all processes stop, or this one alone.
    """

    def __init__(
        self,
        message: str,
        *,
        batch: Batch,
        generators: Mapping[str, Tensor],
        losses: Mapping[str, float] | None = None,
        is_shared: bool = False,
    ) -> None:
        super().__init__(message)
        self.batch = batch
        self.generators = dict(generators)
        self.losses = dict(losses or {})
        self.is_shared = is_shared


class UnlabelledBatchError(FloatingPointError):
    """The teacher's features of a batch are not finite; carries the batch."""

    def __init__(self, message: str, batch: Batch) -> None:
        super().__init__(message)
        self.batch = batch


class StepStart:
    """What a forward pass changes before any optimizer has stepped: buffers of the student, and generators.

    Remembering costs one fused copy of small buffers on the device and no wait for it.

    Args:
        model: whose buffers, but for the teacher's and the constants, are remembered; they must stay the same tensors.
    """

    def __init__(self, model: nn.Module) -> None:
        self._buffers = [buffer for name, buffer in model.named_buffers() if "teacher_" not in name]
        self._kept = [buffer.clone() for buffer in self._buffers]
        self._device = next(model.parameters()).device
        self.generators: dict[str, Tensor] = {}

    def remember(self) -> None:
        """A step begins here."""
        if self._buffers:
            torch._foreach_copy_(self._kept, self._buffers)
        self.generators = {"cpu": torch.get_rng_state()}
        if self._device.type == "cuda":
            self.generators["cuda"] = torch.cuda.get_rng_state(self._device)

    def restore(self) -> None:
        """Put the buffers back."""
        if self._buffers:
            torch._foreach_copy_(self._buffers, self._kept)


@torch.no_grad()
def name_gradient(model: nn.Module) -> str:
    """Which gradients are not finite, in words; reads the device for each, so only for a run that ends anyway."""
    gradients = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    wrong = [name for name, gradient in gradients.items() if not gradient.isfinite().all()]
    if wrong:
        gradient = gradients[wrong[0]]
        first = float(gradient[~gradient.isfinite()][0])
        others = f" (and those of {len(wrong) - 1} other parameters)" if len(wrong) > 1 else ""
        return f"gradient of {_bare(wrong[0])} = {first}{others}"
    sizes = {name: float(gradient.abs().max()) for name, gradient in gradients.items() if gradient.numel()}
    largest = max(sizes, key=lambda name: sizes[name])
    return (
        f"gradient norm is not finite, each gradient is; the largest is that of {_bare(largest)}, {sizes[largest]:.3g}"
    )


def _bare(name: str) -> str:
    """Without what ``DistributedDataParallel`` puts before it."""
    return name.removeprefix("module.")
