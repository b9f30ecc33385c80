"""What a call of `Comm` brings: options, a receiver and what was found out about it, what ranks have to agree on."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
from mpi4py import MPI

from sfb.checks import is_receiver
from sfb.collectives.algorithms import check_algorithm
from sfb.collectives.eager import Carried
from sfb.collectives.fused import Repeated
from sfb.factors import Factors
from sfb.receiver import Assign, Receiver
from sfb.runtime.agreement import Agreement, Meeting
from sfb.runtime.limits import MAX_BYTES, STALL
from sfb.runtime.windows import Block, find
from sfb.tuning.plan import Plan
from sfb.tuning.profile import Profile

__all__ = [
    "MOST",
    "NO_PARCEL",
    "Again",
    "Opened",
    "Options",
    "Parcel",
    "Seen",
    "Signature",
    "Timed",
    "check_factors",
    "describe_call",
    "normal",
]

MOST = 256  # plans kept, as S may change from call to call, and receivers that are known


@dataclass(frozen=True)
class Options:
    """What a `Comm` was made with."""

    check: bool = True
    profile: Profile | None = None
    reproducible: bool = False
    max_bytes: int = MAX_BYTES
    progress: str = "thread"
    wire: str | None = None
    seed: int | None = None
    stall: float = STALL


class Parcel(NamedTuple):
    """What a rank sends with its header.

    Attributes:
        algorithm: That needs it; None if nothing is sent.
        kind: Its number, from 1 on.
        nbytes: That it has.
        values: What the ranks sum in its place, if anything.
        seconds: That it took to write.
    """

    algorithm: str | None
    kind: int
    nbytes: int
    values: np.ndarray | None
    seconds: float


NO_PARCEL = Parcel(None, 0, 0, None, 0.0)


class Timed(NamedTuple):
    """A call of a trial, of which the next one tells the other ranks.

    Attributes:
        plan: Whose trial it is.
        algorithm: That was taken.
        spent: Nanoseconds of this rank's work, the exchange after the agreement included, and of its wait for that;
            but for what the call spares that repeats it.
    """

    plan: Plan
    algorithm: str
    spent: tuple[int, int]


class Opened(NamedTuple):
    """A call that this rank has shown the others.

    Attributes:
        meeting: By which the ranks agree on it.
        seen: What is known of the receiver; None if the arguments are wrong.
        receiver: To be updated.
        algorithm: As the caller named it.
        signature: What has to be equal on all ranks; None likewise.
        timed: The call before, if that was a trial.
        plan: Where all ranks are known to agree already, S included, what they did last time.
        parcel: What was sent along.
        began: When this rank came to it, in seconds.
        shown: When the others could see it.
    """

    meeting: Meeting
    seen: Seen | None
    receiver: Any
    algorithm: str
    signature: Signature | None
    timed: Timed | None
    plan: Plan | None
    parcel: Parcel
    began: float
    shown: float


class Again(NamedTuple):
    """What the last exchange of a signature and an algorithm was, if the next one may repeat it.

    Attributes:
        algorithm: Its name.
        exchange: That does it.
        plan: By which it was done; only while that is kept.
        wire_bytes: That this rank received.
        samples: S of this rank.
        digest: What the ranks compared.
    """

    algorithm: str
    exchange: Carried | Repeated
    plan: Plan
    wire_bytes: int
    samples: int
    digest: int


class Signature:
    """What has to be equal on all ranks in calls with one receiver, its settings and an algorithm.

    Attributes:
        key: What plans depend on.
        plans: The last plan, by S, where that is the same on all ranks.
        last: The last plan, whatever S.
        again: The last exchanges that may be repeated, by algorithm.
    """

    def __init__(self, key: tuple[object, ...], rest: tuple[object, ...]) -> None:
        self.key = key
        self.plans: dict[object, Plan] = {}
        self.last: Plan | None = None
        self.again: dict[str, Again] = {}
        self._whole = key, *rest
        self._digests: dict[str, int] = {}

    def digest(self, call: str) -> int:
        """Return the number that stands for it, and for the user's call."""
        found = self._digests.get(call)
        if found is None:
            found = self._digests[call] = Agreement.digest(call, self._whole)
        return found


class Seen:
    """What was found out about a receiver, for as long as it stays the same.

    Attributes:
        shape: (K, D).
        dtype: Of its array.
        wire: The format that its factors travel in.
        block: The shared memory that it lies in, if it does.
        complete: Whether it has all its state.
        repeatable: Whether a signature of it has an exchange that may be repeated.
    """

    def __init__(self, recvbuf: Any, receiver: Receiver, block: Block | None, options: Options) -> None:
        self._recvbuf: Any = weakref.ref(recvbuf)
        self._is_array = receiver is not recvbuf
        self._array = weakref.ref(receiver.array)
        self._state: list[Any] = [weakref.ref(array) for array in receiver.state if array is not None]
        self.complete = len(self._state) == len(receiver.state)
        self.block = block
        self._places = tuple(_place(array) for array in (receiver.array, *receiver.state))
        self._options = options.max_bytes, options.reproducible, options.wire, options.seed
        self.wire = options.wire
        self.shape = receiver.shape
        self.dtype = receiver.dtype
        self.repeatable = False
        self._signatures: dict[object, Signature] = {}
        self._ready: tuple[str, tuple[object, ...], Signature, Again] | None = None

    def receiver(self, recvbuf: Any) -> Receiver:
        """Return the receiver that ``recvbuf`` is, or what sets an array to a sum."""
        if not self._is_array:
            return recvbuf
        assign = Assign.__new__(Assign)  # its array has been checked
        assign.array = recvbuf
        return assign

    def same(self, recvbuf: Any) -> bool:
        """Return whether this is about ``recvbuf`` and its arrays, whatever has become of their kind."""
        if not self.complete or self._recvbuf() is not recvbuf:
            return False
        if self._is_array:
            return True
        state = recvbuf.state
        if recvbuf.array is not self._array() or len(state) != len(self._state):
            return False
        return not state or all(array is reference() for array, reference in zip(state, self._state, strict=True))

    def holds(self, recvbuf: Any) -> bool:
        """Return whether this is about ``recvbuf``, with the arrays that it has now."""
        if not self.same(recvbuf):
            return False
        arrays: tuple[Any, ...] = (recvbuf,) if self._is_array else (recvbuf.array, *recvbuf.state)
        return all(is_receiver(array) and array.shape == self.shape for array in arrays)

    def ready(self, algorithm: str, receiver: Receiver) -> Again | None:
        """Return the exchange that was repeated last, if the next call may do the same."""
        if self._ready is None:
            return None
        its, settings, signature, last = self._ready
        same = algorithm == its and receiver.settings == settings
        return last if same and signature.last is last.plan and last.plan.kept else None

    def make_ready(self, algorithm: str, receiver: Receiver, signature: Signature, last: Again) -> None:
        """Remember it."""
        self._ready = algorithm, receiver.settings, signature, last

    def remember(self, signature: Signature, last: Again) -> None:
        """Keep an exchange that may be repeated, in place of the one of its algorithm before."""
        signature.again[last.algorithm] = last
        self._ready = None
        self.repeatable = True

    def known(self, algorithm: str, receiver: Receiver) -> Signature | None:
        """Return what has to be equal on all ranks, if it has been before."""
        return self._signatures.get((algorithm, receiver.settings))

    def signature(self, algorithm: str, receiver: Receiver) -> Signature:
        """Return what has to be equal on all ranks."""
        found = self.known(algorithm, receiver)
        if found is None:
            settings = receiver.settings
            check_algorithm(algorithm)
            receiver.check()
            name = None if self.block is None else self.block.name
            kind = type(receiver).__name__, receiver.passes, receiver.whole
            key = (receiver.shape, receiver.dtype.str, *kind, name, algorithm)
            if len(self._signatures) >= MOST:
                self._signatures.clear()
            rest = normal(settings), self._places, self._options
            found = self._signatures[algorithm, settings] = Signature(key, rest)
        return found


def check_factors(factors: Any, seen: Seen, receiver: Receiver, op: MPI.Op) -> None:
    """Raise TypeError or ValueError unless a receiver can take the sum of such factors."""
    if not isinstance(factors, Factors):
        raise TypeError(f"sendbuf must be Factors when recvbuf is an optimizer, got {type(factors).__name__}")
    if op is not MPI.SUM and op != MPI.SUM:
        raise ValueError("op must be MPI.SUM with Factors: other reductions of uᵀv need the dense matrix")
    factors.check()
    u, v, shape = factors.u, factors.v, seen.shape
    if (u.shape[1], v.shape[1]) != shape:
        raise ValueError(f"the receiver must have the shape {factors.shape} of the factors, got {shape}")
    if u.dtype != seen.dtype:
        raise ValueError(f"the receiver must have the dtype {u.dtype} of the factors, got {seen.dtype}")
    if seen.wire is not None and u.dtype != np.float32:
        raise TypeError(f"wire={seen.wire!r} takes float32 factors, got {u.dtype}")
    for array in (receiver.array, *receiver.state):
        if array is not None:
            for name, factor in (("u", u), ("v", v)):
                if np.may_share_memory(factor, array):
                    raise ValueError(f"{name} shares memory with the receiver; copy it first")


def normal(settings: tuple[object, ...]) -> tuple[object, ...]:
    """Return settings as they are compared: 1 is 1.0."""
    return tuple(float(value) if isinstance(value, Real) else value for value in settings)


def _place(array: np.ndarray | None) -> object:
    """Return where an array lies, as far as it has to be the same on all ranks; "" if it is yet to be created."""
    if array is None:
        return ""
    block = find(array)
    return None if block is None else (block.name, block.offset(array))


def describe_call(factors: Any, receiver: Any, algorithm: str) -> str:
    """Say what a rank passed; never raises."""
    if not isinstance(factors, Factors):
        return f"{type(factors).__name__} and {type(receiver).__name__}"
    if not isinstance(receiver, Receiver):
        target, arrays = f"array {receiver.shape} {receiver.dtype}", [receiver]
    else:
        target, arrays = repr(receiver), [receiver.array, *receiver.state]
    for array in arrays:
        place = _place(array)
        if place == "":
            target += ", state not yet created"
        elif isinstance(place, tuple):
            target += f", in shared memory {place[0][:8]}+{place[1]}"
    return f"{factors.shape} {factors.dtype} Factors into {target}, algorithm {algorithm!r}"
