"""The check that Detectron2 and a PyTorch that is new enough are there, before anything imports them."""

from __future__ import annotations

from importlib.util import find_spec

OLDEST_TORCH = (2, 4)


def require_detectron2() -> None:
    """Return if PyTorch and Detectron2 can be used, without importing Detectron2.

    A bare folder called detectron2 in the working directory, such as a clone's root, does not count as Detectron2.

    Raises:
        ImportError: PyTorch or Detectron2 is missing, or PyTorch is older than `OLDEST_TORCH`; one sentence says
            what to do.
    """
    oldest = ".".join(map(str, OLDEST_TORCH))
    if find_spec("torch") is None:
        raise ImportError(f"PyTorch is not installed: run `pip install -e .`, which brings torch>={oldest}")
    spec = find_spec("detectron2")
    if spec is None or spec.origin is None:
        raise ImportError(
            "Detectron2 is not installed: run `python tools/install_detectron2.py`, or follow "
            "https://detectron2.readthedocs.io/en/latest/tutorials/install.html"
        )
    import torch

    if _release(torch.__version__) < OLDEST_TORCH:
        raise ImportError(
            f"torch must be {oldest} or newer, got {torch.__version__}: run `pip install -U torch torchvision`"
        )


def _release(version: str) -> tuple[int, int]:
    major, minor = version.split(".")[:2]
    return int(major), int(minor)
