"""Cases of bad input, how they end, and what counts as an end.

A case ends well if it succeeds, or if one of the project's own errors is raised:

* a ``ValueError`` (``PictureError`` and others are such), ``OSError`` or ``FloatingPointError``,
* by a ``raise`` statement that stands in the package, not by a library that was called,
* with words of at least ``FEWEST_LETTERS`` letters.

Anything else, a ``TypeError`` out of numpy as well as a ``ValueError`` that json raised and nobody named, is a failure.
"""

from __future__ import annotations

import ast
import functools
import random
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import hypothesis
import numpy as np
import torch
from hypothesis import strategies

import s2uniseg_d2

PACKAGE = Path(s2uniseg_d2.__file__).parent
KINDS = (ValueError, OSError, FloatingPointError)
FEWEST_LETTERS = 15


class Target(NamedTuple):
    """Something that reads what others wrote.

    Attributes:
        name: in the table.
        cases: gives a case.
        run: takes a case and an empty folder; raises what is raised.
        share: cases of it among a thousand.
    """

    name: str
    cases: strategies.SearchStrategy
    run: Callable[[object, Path], object]
    share: int


class Failure(NamedTuple):
    """A case that ended otherwise."""

    target: str
    text: str


@functools.cache
def raise_lines(path: str) -> frozenset[int]:
    """Lines of the ``raise`` statements of a file."""
    tree = ast.parse(Path(path).read_text(encoding="utf-8"))
    found = (node for node in ast.walk(tree) if isinstance(node, ast.Raise))
    return frozenset(line for node in found for line in range(node.lineno, (node.end_lineno or node.lineno) + 1))


def is_ours(error: BaseException) -> bool:
    """Whether an error is one of the project's own, as told above."""
    if not isinstance(error, KINDS) or len(str(error)) < FEWEST_LETTERS:
        return False
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return PACKAGE in Path(frame.filename).parents and frame.lineno in raise_lines(frame.filename)


def end_of(target: Target, case: object) -> str:
    """ "succeeded" or "refused"; what else is raised goes on."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a library's warning is no end
        try:
            target.run(case, Path(folder))
        except KINDS as error:
            if is_ours(error):
                return "refused"
            raise
    return "succeeded"


def try_target(target: Target, count: int, seed: int) -> Counter[str]:
    """The ends of ``count`` cases; hypothesis makes the first one that fails small and raises its error."""
    ends: Counter[str] = Counter()

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate, hypothesis.Phase.shrink],
        suppress_health_check=list(hypothesis.HealthCheck),
        print_blob=False,
    )
    @hypothesis.given(target.cases)
    def try_one(case: object) -> None:
        ends[end_of(target, case)] += 1

    try_one()
    return ends
