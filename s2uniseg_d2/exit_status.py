"""The exit statuses of all commands, and how they end on Ctrl-C."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn

DONE = 0
ERROR = 1  # one sentence on stderr says what went wrong
WRONG_ARGUMENTS = 2
INTERRUPTED = 130  # what shells give to a process that Ctrl-C (SIGINT, 2) ended: 128 + 2
TERMINATED = 143  # by SIGTERM, 15

# the end of every --help
HELP = (
    "exit status: 0 done, 1 an error (one sentence on stderr says which), 2 wrong arguments, 130 after Ctrl-C,\n"
    "143 after SIGTERM"
)


class UsageError(ValueError):
    """Words of a command line that make no sense together."""


class Parser(argparse.ArgumentParser):
    """Wrong words are a :class:`UsageError` in place of two lines on stderr."""

    def error(self, message: str) -> NoReturn:
        """Raise it."""
        raise UsageError(message)


def printable(text: object) -> str:
    """Text that does nothing to a terminal: line breaks and all else that cannot be printed become "?"."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(text))


def one_line(text: object) -> str:
    """The same for prose: blanks and line breaks become single blanks."""
    return printable(" ".join(str(text).split()))


def counted(number: int, noun: str) -> str:
    """A number with what it counts: "1 picture", "1,200 pictures"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def fail(name: str, reason: object, status: int = ERROR) -> int:
    """Write one sentence to stderr, after the command's name; returns the status."""
    sys.stderr.write(f"{name}: {one_line(reason)}\n")
    return status


def status_of(error: BaseException) -> int:
    """2 for wrong arguments, 1 for any other error."""
    return WRONG_ARGUMENTS if isinstance(error, UsageError) else ERROR


def run_main(main: Callable[[], int], name: str, advice: str = "the same words begin anew") -> int:
    """Call a command's ``main``; Ctrl-C ends it with a sentence in place of a traceback.

    Args:
        main: gives an exit status.
        name: of the command.
        advice: what to do after Ctrl-C.
    """
    try:
        return main()
    except KeyboardInterrupt:
        sys.stderr.write(f"{name}: interrupted; {advice}\n")
        return INTERRUPTED
