"""What this process does now: the one record that trace, watchdog, SFB_DEBUG and SIGUSR2 read."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from weakref import ReferenceType, WeakSet

import numpy as np

if TYPE_CHECKING:
    from sfb.trace.recorder import Recorder

__all__ = ["NOW", "Now", "describe"]


class Now:
    """What a process does, and who wants to know.

    Calls mark their begin and end by setting `call`, in every run, and test `on` before they do more.

    Attributes:
        on: Whether calls are recorded or logged.
        call: The call that waits for other ranks or is about to, a list: its name; an object whose ``position`` is the
            label of the communicator and the number of its last call; what it was given; and when the watchdog has
            first seen it, None before. None between calls.
        wait: A weak reference to the last wait of this library (`sfb.runtime.board.Watch`), which lives as long as it.
        algorithm: How the call of plain arrays under way is done, while `on`.
        recorder: What records events; None without a trace.
        log: Writes a line for SFB_DEBUG; None without it.
        rank: This rank in COMM_WORLD; -1 before any communicator of the library exists.
        size: The number of ranks of COMM_WORLD.
        joined: The number of communicators of the library that this process has joined.
        problem: Why there is no trace though one was asked for; "" for no reason. A communicator of the library tells.
        teams: The teams of this process, whose boards show what the ranks of a node do.
        host: The name of this node.
    """

    __slots__ = (
        "algorithm",
        "call",
        "host",
        "joined",
        "log",
        "on",
        "problem",
        "rank",
        "recorder",
        "size",
        "teams",
        "wait",
    )

    def __init__(self) -> None:
        self.on = False
        self.call: Any = None
        self.wait: ReferenceType[Any] | None = None
        self.algorithm = ""
        self.recorder: Recorder | None = None
        self.log: Callable[[str], None] | None = None
        self.rank, self.size = -1, 1
        self.joined = 0
        self.problem = ""
        self.teams: WeakSet[Any] = WeakSet()
        self.host = socket.gethostname()

    def __repr__(self) -> str:
        return f"Now(rank {self.rank} of {self.size}, {'on' if self.on else 'off'}, in {self.call!r})"

    def place(self, rank: int, size: int) -> None:
        """Note which rank this is."""
        self.rank, self.size = rank, size

    def switch(self) -> None:
        """Set `on` by whether anybody listens."""
        self.on = self.recorder is not None or self.log is not None


def describe(what: Any) -> str:
    """Return a text of what a call was given; never raise.

    >>> import numpy as np
    >>> from sfb.trace.now import describe
    >>> describe(np.zeros((2, 3), np.float32))
    '2×3 float32'
    """
    if what is None:
        return ""
    try:
        if isinstance(what, np.ndarray):
            return f"{'×'.join(map(str, what.shape)) or 'scalar'} {what.dtype}"
        if isinstance(what, (list, tuple)) and what:
            return describe(what[0])
        if hasattr(what, "describe"):
            return str(what.describe())
        if hasattr(what, "shape") and hasattr(what, "dtype"):
            return f"{'×'.join(map(str, what.shape))} {what.dtype}"
        return what if isinstance(what, str) else type(what).__name__
    except Exception as error:  # a message about a call must not end it
        return f"{type(what).__name__} ({type(error).__name__})"


NOW = Now()
