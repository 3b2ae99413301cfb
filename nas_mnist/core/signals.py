"""Ctrl-C and SIGTERM as one exception."""

from __future__ import annotations

import signal
from types import FrameType


class Interrupted(KeyboardInterrupt):
    """A signal asked this process to end.

    A subclass, because Python ends a process by the signal, not by its exit code, after `KeyboardInterrupt`
    itself has passed through ``exec``, which libraries call while they are imported.
    """


def raise_on(*signals: signal.Signals) -> None:
    """Let these signals raise `Interrupted` in the main thread, except signals that are ignored now."""
    for number in signals:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _interrupt)


def _interrupt(_: int, __: FrameType | None) -> None:
    raise Interrupted
