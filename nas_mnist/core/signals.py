"""Ctrl-C and SIGTERM as one exception."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

AGAIN = 0.05  # seconds until an interruption that was swallowed is raised again


class Interrupted(KeyboardInterrupt):
    """A signal asked this process to end.

    A subclass, because Python ends a process by the signal, not by its exit code, after `KeyboardInterrupt`
    itself has passed through ``exec``, which libraries call while they are imported.
    """


def raise_on(*signals: signal.Signals) -> None:
    """Let these signals raise `Interrupted` in the main thread, except signals that are ignored now.

    Python swallows exceptions in destructors and in callbacks of its garbage collection, which libraries
    have: there it is raised again a moment later.
    """
    for number in signals:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _interrupt)
    if not isinstance(sys.unraisablehook, _RaiseAgain):
        sys.unraisablehook = _RaiseAgain(sys.unraisablehook)


def _interrupt(_: int, __: FrameType | None) -> None:
    raise Interrupted


class _RaiseAgain:
    """The hook for exceptions that Python swallows."""

    def __init__(self, otherwise: Callable[[UnraisableHookArgs], object]) -> None:
        self.otherwise = otherwise

    def __call__(self, swallowed: UnraisableHookArgs) -> None:
        if isinstance(swallowed.exc_value, Interrupted):
            signal.signal(signal.SIGALRM, _interrupt)
            signal.setitimer(signal.ITIMER_REAL, AGAIN)
        else:
            self.otherwise(swallowed)
