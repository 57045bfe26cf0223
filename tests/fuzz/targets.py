"""Everything that is fuzzed."""

from __future__ import annotations

import math

from tests.fuzz import annotations, models, pictures_and_files
from tests.fuzz.harness import Target

TARGETS: list[Target] = [*pictures_and_files.TARGETS, *annotations.TARGETS, *models.TARGETS]


def cases_of(target: Target, total: int) -> int:
    """How many of ``total`` cases are this target's."""
    return math.ceil(total * target.share / sum(other.share for other in TARGETS))
