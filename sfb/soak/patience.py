"""The end of a run that hangs: it says which call did, shows the stacks, and ends the job."""

from __future__ import annotations

import faulthandler
import os
import sys
from collections.abc import Callable
from threading import Event, Thread
from time import monotonic, sleep
from types import TracebackType

from sfb.launch import abort

__all__ = ["Patience"]

_GRACE = 20.0  # seconds after which C code ends the process, if a call keeps the interpreter
_STDERR = 2  # the descriptor
_TURN = 2.0  # seconds for which a rank lets others speak


class Patience:
    """Ends the job if a rank does not come to `renew` again within ``seconds``; a context manager.

    Args:
        seconds: The time.
        describe: Function that returns what the rank does.
    """

    def __init__(self, seconds: float, describe: Callable[[], str]) -> None:
        self._seconds = seconds
        self._describe = describe
        self._end = monotonic() + seconds
        self._over = Event()
        self._thread = Thread(target=self._watch, daemon=True, name="sfb soak")

    def renew(self) -> None:
        """Begin to wait anew."""
        self._end = monotonic() + self._seconds
        faulthandler.dump_traceback_later(self._seconds + _GRACE, exit=True, file=_STDERR)

    def _watch(self) -> None:
        while not self._over.wait(0.5):
            if monotonic() > self._end:
                print(f"sfb: error: no end after {self._seconds:g} s: {self._describe()}", file=sys.stderr, flush=True)
                faulthandler.dump_traceback(_STDERR, all_threads=True)
                sleep(_TURN)  # so that the other ranks show theirs
                abort(1)
                os._exit(1)  # a process alone

    def __enter__(self) -> Patience:
        self._thread.start()
        self.renew()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        faulthandler.cancel_dump_traceback_later()
        self._over.set()
        self._thread.join()
