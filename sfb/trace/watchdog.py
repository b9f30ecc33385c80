"""A thread that says what this rank waits for: after a time, and when SIGUSR2 comes."""

from __future__ import annotations

import faulthandler
import logging
import os
import select
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic
from types import FrameType
from typing import Any, NamedTuple

import numpy as np

from sfb.trace.now import NOW, describe
from sfb.trace.settings import patience, write_trace
from sfb.trace.stack import stack_from

__all__ = ["STATE_BYTES", "State", "Watchdog", "attend"]

_log = logging.getLogger("sfb")

# Bytes of a rank's state in memory of its node: when it was written, since when the rank waits (0: it does not), text.
STATE_BYTES = 640
# Looks of the thread in the time after which it speaks; seconds between two looks at least and at most.
_LOOKS, _BETWEEN = 4, (0.02, 15.0)
# Seconds for which the signal handler may take to write the stacks.
_DUMP = 0.05
# Parts of the library that no user looks for when asked where a program is.
_INNER = ("arrays", "collectives", "comm.py", "kernels", "runtime", "store", "trace", "tuning")
_HERE = Path(__file__).parents[1]
# Seconds after which the last look of a wait is no longer news: an exception may have ended it.
_FRESH = 1.0
# Seconds after which what another rank has said is old.
_OLD = 60.0


class State(NamedTuple):
    """What a rank does.

    Attributes:
        since: When it began to wait, by `time.monotonic`; 0.0 if it does not wait.
        text: What it does, in words.
    """

    since: float
    text: str


class Watchdog:
    """Looks from time to time at what this rank does (`sfb.trace.now.Now`), and speaks if it waits for long.

    One rank of a node speaks for all that wait there, and says what the ranks of the node do.

    Args:
        seconds: The time after which it speaks; infinity for never. Then twice that, and so on.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        least, most = _BETWEEN
        self.interval = min(most, max(least, seconds / _LOOKS))
        self._due = seconds
        self._since = 0.0

    def look(self) -> str | None:
        """Look once, and return what to say; None for nothing."""
        now = monotonic()
        state = self.state(now)
        boards = _boards()
        for board in boards:
            _publish(board, board.me, now, state)
        if not state.since:
            self._since, self._due = 0.0, self.seconds
            return None
        if state.since != self._since:
            self._since, self._due = state.since, self.seconds
        if now - state.since < self._due:
            return None
        self._due *= 2
        others = [] if not boards else _read_states(max(boards, key=lambda board: board.ranks), now)
        late = [me for me, other in others if other.since and now - other.since >= 0.75 * self.seconds]
        if late and boards and min(late) < max(boards, key=lambda board: board.ranks).me:
            return None  # that rank speaks
        lines = [state.text]
        if len(others) > 1:
            lines.append("the ranks of this node:")
            lines += [f"  {other.text}" for _, other in others]
        return "\n".join(lines)

    def state(self, now: float) -> State:
        """Return what this rank does."""
        who = f"rank {max(NOW.rank, 0)} of {NOW.size} on {NOW.host}"
        frames = sys._current_frames()
        since, what, whom = 0.0, "", ""
        watch = None if NOW.wait is None else NOW.wait()
        if watch is not None and watch.last is not None and now - watch.last[3] <= _FRESH:
            what, missing, since, _ = watch.last
            whom = _missing(missing)
        mark = NOW.call
        if mark is not None:
            name, where, given, seen = mark
            if seen is None:
                mark[3] = seen = now
            label, number = where.position
            what = f"{name} #{number} of {label}" if number >= 0 else name
            shapes = describe(given)
            what += f" ({shapes})" if shapes else ""
            since = since or seen
        at = _place(frames)
        if not since:
            text = f"{who} is in no call of sfb that waits"
            return State(0.0, f"{text}; its main thread is at {at}" if at else text)
        verb = "waited" if whom else "been"  # what a kernel or MPI does meanwhile is not known here
        waited = f"has {verb} {now - since:.0f} s" if now - since >= 1 else "is"
        text = f"{who} {waited} in {what}{whom}"
        return State(since, f"{text}; called at {at}" if at else text)


def _place(frames: dict[int, FrameType]) -> str:
    """Return where the main thread is, outside the inner parts of this library."""
    inner = tuple(str(_HERE / part) for part in _INNER)
    innermost: FrameType | None = None
    inside = False
    for frame in stack_from(frames.get(threading.main_thread().ident or 0)):
        if frame.f_code.co_filename.startswith(inner):
            inside = True
        elif inside:  # it has called this library
            return _at(frame)
        elif innermost is None:
            innermost = frame
    return "" if innermost is None else _at(innermost)


def _at(frame: FrameType) -> str:
    return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}"


def _missing(missing: Any) -> str:
    try:
        ranks = missing()
    except Exception:  # what it looks at may be gone by now
        return ""
    return f" for rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}" if ranks else ""


def _boards() -> list[Any]:
    """Return the boards of nodes with several ranks."""
    boards = [getattr(team, "board", None) for team in list(NOW.teams)]
    return [board for board in boards if board is not None and board.ranks > 1 and board.states is not None]


def _publish(board: Any, me: int, now: float, state: State) -> None:
    states = board.states
    if states is None:
        return
    text = state.text.encode()[: STATE_BYTES - 16]
    slot = states[me]
    slot[:16].view(np.float64)[:] = now, state.since
    slot[16:] = 0
    slot[16 : 16 + len(text)] = np.frombuffer(text, np.uint8)


def _read_states(board: Any, now: float) -> list[tuple[int, State]]:
    """Return what the ranks of a node have said last: the number on the node of each, and its state."""
    states = board.states
    found = []
    for me, rank in enumerate(board.members):
        if states is None:
            break
        slot = states[me].copy()
        written, since = slot[:16].view(np.float64).tolist()
        text = slot[16:].tobytes().rstrip(b"\0").decode(errors="replace")
        found.append((me, State(since, text or f"rank {rank} of the communicator has not said what it does")))
        if text and now - written > _OLD:
            found[-1] = me, State(since, f"{text} (said {now - written:.0f} s ago)")
    return found


_watching: Watchdog | None = None


def attend() -> None:
    """Start the watchdog of this process, unless it runs."""
    global _watching
    if _watching is not None:
        return
    _watching = Watchdog(patience())
    reader = _catch_signal()
    threading.Thread(target=_run, args=(_watching, reader), name="sfb watchdog", daemon=True).start()


def _catch_signal() -> int | None:
    """Let SIGUSR2 write the stacks of all threads into a pipe, and return its end to read; None if others handle it.

    The handler of `faulthandler` is C: it needs neither the interpreter nor its lock, so it works while the main thread
    is in a kernel or in MPI.
    """
    with suppress(ValueError, OSError, AttributeError):
        if signal.getsignal(signal.SIGUSR2) is not signal.SIG_DFL:
            return None
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        os.set_blocking(reader, False)
        faulthandler.register(signal.SIGUSR2, file=writer, all_threads=True)
        os.register_at_fork(after_in_child=_leave_signal)
        return reader
    return None


def _leave_signal() -> None:
    """Let SIGUSR2 alone in a child process, which shares the pipe with this one."""
    faulthandler.unregister(signal.SIGUSR2)


def _run(watchdog: Watchdog, reader: int | None) -> None:
    readers: Sequence[int] = [] if reader is None else [reader]
    while True:
        ready, _, _ = select.select(readers, [], [], watchdog.interval)
        try:
            if ready and reader is not None:
                _answer(watchdog, _drain(reader))
            text = watchdog.look()
            if text is not None:
                _log.warning("%s", text)
        except Exception as error:  # a watchdog ends nothing
            _log.debug("the watchdog: %r", error)


def _drain(reader: int) -> str:
    """Return what is written into a pipe until there is a pause."""
    parts = []
    while select.select([reader], [], [], _DUMP)[0]:
        part = os.read(reader, 1 << 16)
        if not part:
            break
        parts.append(part)
    return b"".join(parts).decode(errors="replace")


def _answer(watchdog: Watchdog, stacks: str) -> None:
    """Print what this rank does, and its stacks; write its trace."""
    state = watchdog.state(monotonic())
    lines = [f"sfb: {state.text}"]
    path = write_trace("SIGUSR2")
    if path is not None:
        lines.append(f"the trace so far is in {path}")
    with suppress(OSError):
        os.write(2, ("\n".join(lines) + "\n" + stacks).encode())
