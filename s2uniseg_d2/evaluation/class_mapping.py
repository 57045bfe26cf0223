"""Fitted mappings from pseudo-classes to truth classes, and how evaluators name and keep them."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from detectron2.utils import comm
from numpy.typing import NDArray

from s2uniseg_d2.core.assignment import STRATEGIES, UNMATCHED, relabel

from .whole_files import write_json

logger = logging.getLogger(__name__)

AnyMapping = TypeVar("AnyMapping")

DEFAULT_STRATEGIES = ("hungarian", "majority")


@dataclass(frozen=True, eq=False)
class ClassMapping:
    """A look-up table from pseudo-classes to classes.

    Attributes:
        name: the strategy, which ends the keys of all results made with it (``AP_hungarian``).
        assignment: ``(K,)`` int64 class of every pseudo-class, -1 for none.
        fitted_on: the split whose truth it was fitted on.
        votes: how many votes it was fitted on; 0 maps nothing.
        classes: names of the classes, empty if unknown; known ones must be those of the evaluated data set.
    """

    name: str
    assignment: NDArray[np.int64]
    fitted_on: str
    votes: int = 0
    classes: tuple[str, ...] = ()

    def __call__(self, labels: NDArray[np.integer]) -> NDArray[np.int64]:
        """Return the class of every pseudo-class, -1 where there is none (also for pseudo-class -1)."""
        return relabel(labels, self.assignment)

    @property
    def provenance(self) -> dict[str, float]:
        """A result entry whose key names the split and whose value counts the votes.

        Detectron2 turns every result into a float, so the name stands in the key; its "-" keeps it out of the
        copy-paste lines.
        """
        return {f"votes_{self.name}-{self.fitted_on}": float(self.votes)}


def check_strategies(strategies: Iterable[str]) -> tuple[str, ...]:
    """Return the strategies as a tuple.

    Raises:
        ValueError: if there is none or one is unknown.
    """
    names = tuple(strategies)
    if not names:
        raise ValueError(f"strategies must name at least one of {sorted(STRATEGIES)}, got none")
    if unknown := [name for name in names if name not in STRATEGIES]:
        raise ValueError(f"strategies must be among {sorted(STRATEGIES)}, got {unknown}")
    return names


def fit_mappings(
    counts: NDArray[np.generic], strategies: Iterable[str], fitted_on: str, classes: Sequence[str] = ()
) -> tuple[ClassMapping, ...]:
    """Return one mapping per strategy, all fitted on the same ``(K, C)`` votes of the split ``fitted_on``.

    Without a single vote every pseudo-class has no class (-1): AP, PQ, accuracy and IoU of the classes that the truth
    holds are then 0, and a warning says so. With fewer pseudo-classes than classes, some classes stay without one.
    """
    votes = int(counts.sum())
    if votes == 0:
        logger.warning(
            "no prediction of %s votes for a class: all %d pseudo-classes go unmapped", fitted_on, len(counts)
        )
    return tuple(
        ClassMapping(name, STRATEGIES[name](counts), fitted_on, votes, tuple(classes))
        for name in check_strategies(strategies)
    )


def identity_mapping(num_clusters: int, name: str = "identity") -> ClassMapping:
    """Return the mapping for a model that predicts true classes; results then equal the bare evaluator's."""
    return ClassMapping(name, np.arange(num_clusters, dtype=np.int64), fitted_on="nothing")


def check_mappings(
    mappings: Sequence[ClassMapping], num_clusters: int, classes: Sequence[str]
) -> tuple[ClassMapping, ...]:
    """Return the given mappings if they fit an evaluation with these pseudo-classes and names of classes.

    Raises:
        ValueError: if there is none, a mapping has another number of clusters, names a class that is not there or was
            fitted with other classes, or two share a name.
    """
    if not mappings:
        raise ValueError("mappings must hold at least one, got none")
    num_classes = len(classes)
    for mapping in mappings:
        if mapping.classes and mapping.classes != tuple(classes):
            raise ValueError(
                f"mapping {mapping.name!r} was fitted on {mapping.fitted_on} with other classes than those evaluated: "
                f"{_difference(mapping.classes, classes)}"
            )
        if mapping.assignment.shape != (num_clusters,):
            raise ValueError(
                f"mapping {mapping.name!r} must assign {num_clusters} clusters, got {mapping.assignment.shape}"
            )
        if num_clusters and not (mapping.assignment.min() >= UNMATCHED and mapping.assignment.max() < num_classes):
            raise ValueError(
                f"mapping {mapping.name!r} must name classes in [-1, {num_classes}), "
                f"got {mapping.assignment.min()} to {mapping.assignment.max()}"
            )
    if len({mapping.name for mapping in mappings}) != len(mappings):
        raise ValueError(f"mappings must have different names, got {[mapping.name for mapping in mappings]}")
    return tuple(mappings)


def _difference(fitted: Sequence[str], evaluated: Sequence[str]) -> str:
    for number, (theirs, ours) in enumerate(zip(fitted, evaluated, strict=False)):
        if theirs != ours:
            return f"class {number} is {theirs!r} there and {ours!r} here"
    return f"{len(fitted)} there and {len(evaluated)} here"


def share_mappings(mappings: tuple[AnyMapping, ...], distributed: bool) -> tuple[AnyMapping, ...]:
    """Return the main process's mappings on every process; all of them must call this."""
    return comm.all_gather(mappings)[0] if distributed else mappings


def save_mappings(path: str | Path, mappings: Iterable[ClassMapping], classes: Sequence[str]) -> None:
    """Write mappings, with the names of the classes for the reader's sake, to a JSON file."""
    content: dict[str, Any] = {"classes": list(classes), "mappings": []}
    for mapping in mappings:
        entry = {"name": mapping.name, "fitted_on": mapping.fitted_on, "votes": mapping.votes}
        content["mappings"].append({**entry, "assignment": mapping.assignment.tolist()})
    write_json(path, content)


def load_mappings(path: str | Path) -> tuple[ClassMapping, ...]:
    """Return the mappings of a file that :func:`save_mappings` wrote, for the evaluation of another split.

    Raises:
        ValueError: if the file is missing or no such file.
    """
    try:
        content = json.loads(Path(path).read_text())
        entries, classes = content["mappings"], tuple(str(name) for name in content["classes"])
        return tuple(
            ClassMapping(
                str(entry["name"]),
                np.asarray(entry["assignment"], dtype=np.int64),
                str(entry["fitted_on"]),
                int(entry["votes"]),
                classes,
            )
            for entry in entries
        )
    except OSError as error:
        raise ValueError(f"cannot read class mappings {path}: {error.strerror or error}") from error
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ValueError(f"{path} is not a file of class mappings: {error!r}") from error


def check_pseudo_classes(labels: NDArray[np.integer], num_clusters: int, *, lowest: int = 0) -> None:
    """Raise a ValueError if a pseudo-class lies outside [lowest, num_clusters)."""
    if labels.size and not (labels.min() >= lowest and labels.max() < num_clusters):
        raise ValueError(
            f"pseudo-classes must lie in [{lowest}, {num_clusters}), got {labels.min()} to {labels.max()}; "
            f"is num_clusters the model's?"
        )
