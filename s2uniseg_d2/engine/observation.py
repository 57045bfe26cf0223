"""Figures of training for the record, and warnings when they say that it has collapsed."""

from __future__ import annotations

import logging
import math
import resource
import sys
from collections.abc import Mapping
from typing import Any

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import Tensor

from s2uniseg_d2.core.observer import StepObserver

from .hooks import unwrap

logger = logging.getLogger(__name__)

# A model of random weights is above all three (the full recipe: 350 clusters, 0.03 nats, a spread of 0.01), so that
# training can be watched from its first step.
LEAST_CLUSTERS = 1.5  # effective number below which all queries are in one cluster
LEAST_INFORMATION = 0.005  # nats that a query's distribution must tell about the query
LEAST_SPREAD = 0.003  # of mask probabilities
SIDES = ("teacher", "student")


class ObservationHook(HookBase):
    """Puts what the steps of a period showed into the record; belongs right after the teacher's update.

    Figures wait on the device until the period ends and come in one transfer. They are means over the period already
    and are not smoothed again.

    A collapse that lasts is warned of when it is first seen and then whenever the number of periods in a row has
    doubled, so that it does not fill the log of a long run; a run that goes on counts anew.

    Args:
        period: iterations.
    """

    def __init__(self, period: int) -> None:
        self.period = period
        self._in_a_row: dict[str, int] = {}  # periods until now, by what has collapsed

    @property
    def _observer(self) -> StepObserver:
        return unwrap(self.trainer.model).observer

    def state_dict(self) -> dict[str, Any]:
        """What was seen since the last line of the record."""
        return self._observer.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take it up; of several processes, a checkpoint holds what one has seen, and all begin anew."""
        if comm.get_world_size() == 1:
            self._observer.load_state_dict(state_dict, unwrap(self.trainer.model).device)

    def before_step(self) -> None:
        """Begin to observe."""
        self._observer.begin(unwrap(self.trainer.model).device)

    def after_step(self) -> None:
        """End the step; at the end of a period and of the run, write and warn."""
        observer, trainer = self._observer, self.trainer
        observer.lap("momentum")
        norm = getattr(trainer.optimizer, "gradient_norm", None)
        if norm is not None:
            observer.add("grad_norm", norm)
        observer.end()
        if (trainer.iter + 1) % self.period == 0 or trainer.iter + 1 == trainer.max_iter:
            observed = observer.take()
            if comm.is_main_process():
                figures = scalars_of(observed.means)
                seconds = {f"seconds/{name}": spent for name, spent in observed.seconds.items()}
                trainer.storage.put_scalars(**figures, **seconds, **memory_gib(), smoothing_hint=False)
                student_temp = unwrap(trainer.model).student_temp
                trainer.storage.put_scalar("student_temp", student_temp, smoothing_hint=False)
                self._warn(find_collapses(figures))

    def _warn(self, collapses: Mapping[str, str]) -> None:
        self._in_a_row = {key: self._in_a_row.get(key, 0) + 1 for key in collapses}
        for key, seen in self._in_a_row.items():
            if seen & (seen - 1) == 0:  # 1, 2, 4, 8 ...
                often = f"; seen {seen} times in a row" if seen > 1 else ""
                logger.warning("iteration %d: %s%s", self.trainer.iter, collapses[key], often)


def scalars_of(means: Mapping[str, Tensor]) -> dict[str, float]:
    """The figures by name; a vector gives one per place, an assignment its effective number of clusters.

    That number is the exponential of the entropy of the mean assignment: K for an even use of all K clusters, 1 if all
    queries are in one. What a query's own distribution tells about it, ``query_sd/..._information`` in nats, is that
    entropy less the mean entropy of the queries' distributions: 0 if all queries have the same.
    """
    figures: dict[str, float] = {}
    for name, mean in means.items():
        if name.startswith("assignment/"):
            side = name.removeprefix("assignment/")
            entropy = -float(torch.special.xlogy(mean, mean).sum())
            figures[f"query_sd/{side}_clusters"] = math.exp(entropy)
            own = float(means[f"query_sd/{side}_entropy"])
            figures[f"query_sd/{side}_information"] = max(entropy - own, 0.0)
        elif mean.ndim:
            figures |= {f"{name}_{place}": value for place, value in enumerate(mean.tolist())}
        else:
            figures[name] = float(mean)
    return figures


def memory_gib() -> dict[str, float]:
    """Peaks of this process so far: resident memory, and what PyTorch has allocated on the GPU; no wait for either."""
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts KiB, on macOS bytes
    memory = {"memory/resident_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30}
    if torch.cuda.is_available():
        memory["memory/gpu_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return memory


def find_collapses(figures: Mapping[str, float]) -> dict[str, str]:
    """What has collapsed, in words: one cluster, one mask, or the same output for everything; figures may be missing.

    The keys say where and how, and stay the same while the figures within the words change. Training may go on and may
    recover; the masks and embeddings of the moment are of no use.
    """
    found = {}
    for side in SIDES:
        clusters = figures.get(f"query_sd/{side}_clusters", math.inf)
        if clusters < LEAST_CLUSTERS:
            found[f"{side}_clusters"] = (
                f"collapse to one cluster: the {side}'s queries use {clusters:.2f} clusters in effect "
                "(MODEL.QUERY_SD: centring, temperatures)"
            )
        elif figures.get(f"query_sd/{side}_information", math.inf) < LEAST_INFORMATION:
            found[f"{side}_information"] = (
                f"collapse to a constant output: the {side} gives all queries the same distribution over clusters"
            )
    for group in sorted(name.removeprefix("spread/").removesuffix("_queries") for name in figures if _is_spread(name)):
        if figures[f"spread/{group}_queries"] < LEAST_SPREAD:
            found[f"{group}_queries"] = f"collapse to one mask: all {group} queries of a view predict the same mask"
        elif figures.get(f"spread/{group}_views", math.inf) < LEAST_SPREAD:
            found[f"{group}_views"] = (
                f"collapse to a constant output: {group} queries predict the same masks in every view"
            )
    masks = figures.get("labels/instance_masks", math.inf)
    if masks <= 1:
        found["instance_masks"] = (
            f"collapse to one mask: the teacher finds {masks:.2f} instance masks a picture "
            "(MODEL.UNIAP.TAUS, or its features are all alike)"
        )
    return found


def _is_spread(name: str) -> bool:
    return name.startswith("spread/") and name.endswith("_queries")
