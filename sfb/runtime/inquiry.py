"""How ranks ask each other who has failed, and tell each other, where MPI does not (ULFM)."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from time import monotonic, sleep
from types import FrameType
from typing import Any

from mpi4py import MPI

from sfb.runtime import guard
from sfb.runtime.ending import end_job, end_soon
from sfb.runtime.errors import RankFailedError
from sfb.runtime.failures import EXCHANGES, Failures, UlfmFailures
from sfb.runtime.limits import FAILURE_TAG
from sfb.runtime.processes import state_of
from sfb.runtime.ulfm import enabled

__all__ = ["Inquiry", "failures_among"]

# Seconds that ranks have to say what they wait for, after one has waited for too long.
_ANSWER = 5.0
# Seconds after which the guard ends the job if the main thread has not heard of a failure.
_DEAF = 5.0
# Failed ranks that a message names.
_NAMED = 8
# Seconds that no wait takes.
_EVER = 1e9


def failures_among(world: MPI.Intracomm, timeout: float) -> Failures:
    """Return what this rank knows of failures among ranks; collective, arguments as in `Inquiry`."""
    return UlfmFailures(world, timeout) if enabled() else Inquiry(world, timeout)


class Inquiry(Failures):
    """What a rank learns of failures from the others.

    A rank that waits for longer than the time-out asks all others what they wait for; those that do not answer, or that
    wait for nothing, have failed. Who finds a failure tells all ranks, and all raise. Messages about failures have a
    tag of their own.

    Where no call of this library waits, a thread listens and answers instead, once a second. Another thread, the
    guard, ends the job if the main thread does not hear of a failure, because it waits in MPI. The guard calls
    no MPI and waits for no lock: MPI may never return from any call after a process has died in the midst of a message.

    Args:
        world: A communicator of this library, on which nothing else takes messages of `FAILURE_TAG`.
        timeout: Seconds after which a rank that does not answer has failed.
    """

    def __init__(self, world: MPI.Intracomm, timeout: float) -> None:
        self._sent: list[Any] = []  # requests and what they send
        self._answers: dict[int, dict[str, Any]] = {}
        self._decide: float | None = None
        self._left: set[int] = set()
        self._known: float | None = None
        super().__init__(world, timeout)

    def _look(self, missing: Callable[[], Sequence[int]], what: str, waited: float) -> None:
        with self._lock:
            if self.failure is None and self.peers and not self._closed:
                self._find_gone()
                if self.failure is None:
                    self._hear()
                if waited > self.timeout and self._decide is None:
                    self._ask(monotonic())
                if self._decide is not None:
                    if self._rank not in self._answers:
                        self._answer({"call": what, "waited": waited, "missing": [int(rank) for rank in missing()]})
                    self._conclude(monotonic())

    def find(self) -> None:
        """Raise if a rank of this host is gone, after an error of MPI that may come of that."""
        with self._lock:
            if self.peers and not self._closed:
                self._find_gone()
        self.check()

    def watch(self, place: str, frames: Sequence[FrameType]) -> None:
        """End the job if a rank has failed and the main thread does not hear of it; in the thread of the guard."""
        if self._over():
            return
        text = "" if self.failure is None else str(self.failure)
        if not text and self._near and state_of(self.peers[self._near[0]]) == "gone":
            text = f"rank {self._near[0]} ({self.peers[self._near[0]]}) is gone"
        if text:
            now = monotonic()
            self._known = now if self._known is None else self._known
            if not guard.is_patient() and now - self._known > _DEAF:
                end_job(f"{text}; rank {self._rank} is at {place} and does not hear of it")

    def listen(self, place: str, frames: Sequence[FrameType]) -> None:
        """Look for failures, and answer other ranks, in the thread that listens."""
        if not self._lock.acquire(blocking=False):
            return  # the main thread is looking
        try:
            if self._over():
                return
            now = monotonic()
            if self.failure is None:
                if self._near and state_of(self.peers[self._near[0]]) == "gone":
                    self._find_gone()
                if MPI.Query_thread() == MPI.THREAD_MULTIPLE:
                    self._hear()
                    waited = self._seconds_inside(now, frames, (EXCHANGES,))
                    if waited > self.timeout and self._decide is None:
                        self._ask(now)
                    # A main thread that waits in a loop answers by itself, and says for whom.
                    if self._decide is not None and now > self._decide - _ANSWER + 1.5 * guard.PERIOD:
                        if self._rank not in self._answers:
                            self._answer({"call": "MPI", "waited": waited} if waited else {"place": place})
                        self._conclude(now)
        finally:
            self._lock.release()

    def say_farewell(self) -> None:
        """Tell the other ranks that this one is about to end."""
        with self._lock:
            if not self._over():
                self._tell(self._living(), {"left": True})

    def wait_for_farewells(self, seconds: float) -> None:
        """Wait until all other ranks that are left are about to end, for at most so many seconds."""
        end = monotonic() + seconds
        while monotonic() < end and not self._over():
            end_soon()
            with self._lock:
                self._hear()
                if not {*self._living()}.difference(self._left, self._gone()):
                    return
            sleep(0.1)

    def _living(self) -> list[int]:
        failed = () if self.failure is None else self.failure.ranks
        return [rank for rank in range(self._world.size) if rank != self._rank and rank not in failed]

    def _find_gone(self) -> None:
        """Note ranks of this host whose processes are gone."""
        if gone := self._gone():
            self._fail(dict.fromkeys(gone, "is gone"))

    def _hear(self) -> None:
        """Receive what other ranks say of failures."""
        with suppress(MPI.Exception):
            status = MPI.Status()
            while (message := self._world.Improbe(MPI.ANY_SOURCE, FAILURE_TAG, status)) is not None:
                data = bytearray(status.Get_count(MPI.BYTE))
                message.Recv([data, MPI.BYTE])
                said = _read(data, self._world.size)
                if said is not None:  # not damaged
                    self._take(status.source, said)

    def _take(self, source: int, said: dict[str, Any]) -> None:
        if "left" in said:
            self._left.add(source)
        elif "failed" in said:
            self._fail(dict(said["failed"]), said["why"], forward=False)
        elif "ask" in said:
            self._ask(monotonic(), forward=False)
        else:
            self._answers[source] = said
            self._ask(monotonic(), forward=False)

    def _ask(self, now: float, *, forward: bool = True) -> None:
        """Ask all ranks what they wait for."""
        if self._decide is None:
            self._decide = now + _ANSWER
            if forward:
                self._tell(self._living(), {"ask": True})

    def _answer(self, said: dict[str, Any]) -> None:
        """Say what this rank waits for, or where it is."""
        self._answers[self._rank] = said
        self._tell(self._living(), said)

    def _conclude(self, now: float) -> None:
        """Decide who has failed, once all have had time to answer."""
        answers = self._answers
        if self._decide is None or (now < self._decide and len(answers) < self._world.size):
            return
        failed: dict[int, str] = {}
        for rank in range(self._world.size):
            if rank not in answers:
                stopped = rank in self._near and state_of(self.peers[rank]) == "stopped"
                failed[rank] = "is stopped" if stopped else "does not answer"
            elif "place" in answers[rank]:
                failed[rank] = f"does not come, it is at {answers[rank]['place']}"
        waiting = {rank: said for rank, said in answers.items() if "call" in said}
        if not failed:  # all wait for each other
            failed = {rank: f"waits in {said['call']}{_whom(said)}" for rank, said in waiting.items()}
        longest = max(waiting, key=lambda rank: waiting[rank]["waited"], default=self._rank)
        said = waiting.get(longest, {"waited": 0.0, "call": "a call"})
        waited = f"rank {longest} has waited {said['waited']:.0f} s in {said['call']}"
        self._fail(failed, f"{waited} (the limit is Comm(timeout=), SFB_TIMEOUT)")

    def _fail(self, failed: dict[int, str], why: str = "", *, forward: bool = True) -> None:
        """Note a failure, and tell all ranks of it."""
        if self.failure is not None:
            return
        names = [f"rank {rank} ({self.peers[rank]}) {text}" for rank, text in sorted(failed.items())]
        more = f", and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        ranks = sorted(failed) if len(failed) < self._world.size else ()  # all wait: none is to blame
        self.failure = RankFailedError("; ".join(names[:_NAMED]) + more + (f"; {why}" if why else ""), ranks)
        if forward:
            self._tell(self._living(), {"failed": [*failed.items()], "why": why})

    def _tell(self, ranks: Sequence[int], said: dict[str, Any]) -> None:
        data = json.dumps(said).encode()
        for rank in ranks:
            with suppress(MPI.Exception):
                self._sent.append((self._world.Isend([data, MPI.BYTE], rank, FAILURE_TAG), data))


def _read(data: bytearray, size: int) -> dict[str, Any] | None:
    """Return what a message of one of ``size`` ranks says; None if it is none that a rank sends."""
    try:
        said = json.loads(data)
    except (ValueError, RecursionError):
        return None

    def ranks(values: Any) -> bool:
        return isinstance(values, list) and all(type(rank) is int and 0 <= rank < size for rank in values)

    def pairs(values: Any) -> bool:
        lists = isinstance(values, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in values)
        return lists and ranks([rank for rank, _ in values]) and all(isinstance(text, str) for _, text in values)

    if not isinstance(said, dict):
        return None
    if "failed" in said:
        right = pairs(said["failed"]) and isinstance(said.get("why"), str)
    elif "call" in said:
        waited: Any = said.get("waited")
        right = isinstance(said["call"], str) and type(waited) in (int, float) and 0 <= waited < _EVER
        right = right and ranks(said.get("missing", []))
    else:
        right = "left" in said or "ask" in said or isinstance(said.get("place"), str)
    return said if right else None


def _whom(said: dict[str, Any]) -> str:
    ranks = said.get("missing") or []
    return f" for rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks[:_NAMED]))}" if ranks else ""
