"""Skipping unreadable pictures, up to a limit."""

from __future__ import annotations

import logging

from .pictures import PictureError, UnreadablePictureError

logger = logging.getLogger(__name__)

# Reads in a row without one readable picture: ends a run whose few pictures are all unreadable, which no count of
# distinct files would. Known files are not opened again, so it is reached at once.
_STREAK_LIMIT = 1000


class TooManyUnreadableError(PictureError):
    """More pictures were unreadable than the run allows."""


class UnreadablePictures:
    """Counts the unreadable pictures that one process met, and ends the run when they are too many.

    Args:
        limit: how many distinct files may be skipped.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._known: set[str] = set()
        self._streak = 0

    def __len__(self) -> int:
        """How many distinct files were unreadable so far."""
        return len(self._known)

    def __contains__(self, path: str) -> bool:
        """Whether a file is known to be unreadable."""
        return path in self._known

    def saw_readable(self) -> None:
        """Note that a picture could be read."""
        self._streak = 0

    def skip_again(self, path: str) -> None:
        """Note that a known file was drawn again.

        Raises:
            TooManyUnreadableError: if no picture could be read for a long time.
        """
        self._streak += 1
        if self._streak >= _STREAK_LIMIT:
            raise TooManyUnreadableError(
                f"none of the last {self._streak} pictures drawn could be read ({len(self._known)} different files, "
                f"for example {path}); the log names each with its reason"
            )

    def skip(self, path: str, error: UnreadablePictureError) -> None:
        """Count a file and log its reason.

        Raises:
            TooManyUnreadableError: if more than ``limit`` different files were unreadable.
        """
        self._known.add(path)
        if len(self._known) > self._limit:
            raise TooManyUnreadableError(
                f"{len(self._known)} pictures could not be read, more than INPUT.MAX_UNREADABLE = {self._limit} "
                f"allows; the last: {error}"
            )
        logger.warning("%s; skipped (%d of at most %d in this process)", error, len(self._known), self._limit)
        self.skip_again(path)
