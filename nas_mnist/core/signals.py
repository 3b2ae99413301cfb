"""Ctrl-C and SIGTERM as an exception that is never lost.

Python's own handler has two holes. An exception that is raised within a destructor or a callback of the
garbage collector goes nowhere. And where `KeyboardInterrupt` itself passes through `exec` of a text, which
libraries do while they are imported, the process later ends by the signal instead of by its exit code.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType

AGAIN = 0.05  # seconds until a lost interruption is raised once more


class Interrupted(KeyboardInterrupt):
    """A signal asked this process to end."""


def listen(*signals: signal.Signals) -> None:
    """Let these signals raise `Interrupted` in the main thread, but for those that are ignored by now."""
    for number in signals:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _interrupt)
    if not isinstance(sys.unraisablehook, _Unraisable):
        sys.unraisablehook = _Unraisable()


def _interrupt(_: int, __: FrameType | None) -> None:
    raise Interrupted


class _Unraisable:
    """What Python calls with an exception that goes nowhere."""

    def __init__(self) -> None:
        self._others = sys.unraisablehook

    def __call__(self, lost: sys.UnraisableHookArgs) -> None:
        if not issubclass(lost.exc_type, Interrupted):
            self._others(lost)
            return
        again = threading.Timer(AGAIN, os.kill, (os.getpid(), signal.SIGTERM))
        again.daemon = True
        again.start()
