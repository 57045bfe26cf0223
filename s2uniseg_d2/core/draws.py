"""Seeds of random draws that depend on where a draw stands, not on what was drawn before."""

from __future__ import annotations

import numpy as np


def seed_at(seed: int, *place: int) -> int:
    """A seed in [0, 2^63) for the draws at one place of a run, such as (iteration, rank).

    Neighbouring places give unrelated seeds, and the same place the same one, so that a run that was stopped draws on
    as if it had not been. One purpose should name its places with one count of numbers: trailing zeros change nothing.

    Args:
        seed: of the run, not negative.
        place: numbers that say where the draw stands, not negative.

    Raises:
        ValueError: if a number is negative.
    """
    if min(seed, *place, 0) < 0:
        raise ValueError(f"seed and place must not be negative, got {(seed, *place)}")
    return int(np.random.SeedSequence([seed, *place]).generate_state(1, np.uint64)[0] >> np.uint64(1))
