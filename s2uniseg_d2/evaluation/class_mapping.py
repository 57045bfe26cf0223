"""Fitted mappings from pseudo-classes to truth classes, and how evaluators name and keep them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2uniseg_d2.core.assignment import STRATEGIES, UNMATCHED, relabel

DEFAULT_STRATEGIES = ("hungarian", "majority")


@dataclass(frozen=True, eq=False)
class ClassMapping:
    """A look-up table from pseudo-classes to classes.

    Attributes:
        name: the strategy, which ends the keys of all results made with it (``AP_hungarian``).
        assignment: ``(K,)`` int64 class of every pseudo-class, -1 for none.
        fitted_on: the split whose truth it was fitted on.
        votes: how many votes it was fitted on; 0 maps nothing.
    """

    name: str
    assignment: NDArray[np.int64]
    fitted_on: str
    votes: int = 0

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


def fit_mappings(counts: NDArray[np.generic], strategies: Iterable[str], fitted_on: str) -> tuple[ClassMapping, ...]:
    """Return one mapping per strategy, all fitted on the same ``(K, C)`` votes of the split ``fitted_on``."""
    votes = int(counts.sum())
    return tuple(
        ClassMapping(name, STRATEGIES[name](counts), fitted_on, votes) for name in check_strategies(strategies)
    )


def identity_mapping(num_clusters: int, name: str = "identity") -> ClassMapping:
    """Return the mapping for a model that predicts true classes; results then equal the bare evaluator's."""
    return ClassMapping(name, np.arange(num_clusters, dtype=np.int64), fitted_on="nothing")


def check_mappings(mappings: Sequence[ClassMapping], num_clusters: int, num_classes: int) -> tuple[ClassMapping, ...]:
    """Return the given mappings if they fit this evaluation.

    Raises:
        ValueError: if a mapping has another number of clusters, names a class that is not there, or two share a name.
    """
    for mapping in mappings:
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


def save_mappings(path: str | Path, mappings: Iterable[ClassMapping], classes: Sequence[str]) -> None:
    """Write mappings, with the names of the classes for the reader's sake, to a JSON file."""
    content: dict[str, Any] = {"classes": list(classes), "mappings": []}
    for mapping in mappings:
        entry = {"name": mapping.name, "fitted_on": mapping.fitted_on, "votes": mapping.votes}
        content["mappings"].append({**entry, "assignment": mapping.assignment.tolist()})
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def load_mappings(path: str | Path) -> tuple[ClassMapping, ...]:
    """Return the mappings of a file that :func:`save_mappings` wrote.

    Raises:
        ValueError: if the file is no such file.
    """
    try:
        entries = json.loads(Path(path).read_text())["mappings"]
        return tuple(
            ClassMapping(
                str(entry["name"]),
                np.asarray(entry["assignment"], dtype=np.int64),
                str(entry["fitted_on"]),
                int(entry["votes"]),
            )
            for entry in entries
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a file of class mappings: {error!r}") from error


def check_pseudo_classes(labels: NDArray[np.integer], num_clusters: int, *, lowest: int = 0) -> None:
    """Raise a ValueError if a pseudo-class lies outside [lowest, num_clusters)."""
    if labels.size and not (labels.min() >= lowest and labels.max() < num_clusters):
        raise ValueError(
            f"pseudo-classes must lie in [{lowest}, {num_clusters}), got {labels.min()} to {labels.max()}; "
            f"is num_clusters the model's?"
        )
