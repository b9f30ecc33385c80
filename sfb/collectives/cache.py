"""The cache of checked receivers, and the signatures of calls with them."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from numbers import Real
from typing import Any

import numpy as np
from mpi4py import MPI

from sfb.checks import is_receiver
from sfb.collectives.algorithms import check_algorithm
from sfb.collectives.options import Options
from sfb.factors import Factors
from sfb.receiver import Assign, Receiver
from sfb.runtime.agreement import Agreement
from sfb.runtime.finite import check_finite
from sfb.runtime.windows import Block, find

__all__ = ["MOST", "CachedReceiver", "Receivers", "Signature", "check_factors", "describe_call", "normal"]

MOST = 256  # receivers, and plans, in a cache


class Signature:
    """The part of a call's arguments that has to be equal on all ranks: receiver, settings and algorithm.

    Args:
        key: The values on which plans depend.
        rest: The other values.

    Attributes:
        key: The values on which plans depend.
        plans: The plans for that part, once a call has looked for them.
    """

    __slots__ = ("_digests", "_whole", "key", "plans")

    def __init__(self, key: tuple[object, ...], rest: tuple[object, ...]) -> None:
        self.key = key
        self.plans: Any = None
        self._whole = key, *rest
        self._digests: dict[str, int] = {}

    def digest(self, call: str) -> int:
        """Return the number that stands for the signature and the user's call."""
        found = self._digests.get(call)
        if found is None:
            found = self._digests[call] = Agreement.digest(call, self._whole)
        return found


class CachedReceiver:
    """A receiver that has been checked, and the signatures of calls with it.

    Args:
        recvbuf: The user's argument, an array or an optimizer; the cache holds a weak reference to it.
        receiver: ``recvbuf`` if it is an optimizer, or an `Assign` to the array.
        block: The shared memory in which the array lies; None for memory of this rank.
        options: The options of the communicator.
        forget: Called with the weak reference when ``recvbuf`` is gone.

    Attributes:
        complete: Whether the receiver has all its state.
        block: The shared memory in which the array lies; None for memory of this rank.
        shape: (K, D).
        dtype: The dtype of its array.
        options: The options of the communicator.
    """

    def __init__(
        self,
        recvbuf: Any,
        receiver: Receiver,
        block: Block | None,
        options: Options,
        forget: Callable[[Any], None] | None = None,
    ) -> None:
        self._recvbuf: Any = weakref.ref(recvbuf, forget)
        self._is_array = receiver is not recvbuf
        self._array = weakref.ref(receiver.array)
        self._state: list[Any] = [weakref.ref(array) for array in receiver.state if array is not None]
        self.complete = len(self._state) == len(receiver.state)
        self.block = block
        self.shape = receiver.shape
        self.dtype = receiver.dtype
        self._addresses = tuple(_address(array) for array in (receiver.array, *receiver.state))
        self.options = options
        self._signatures: dict[object, Signature] = {}

    def receiver(self, recvbuf: Any) -> Receiver:
        """Return ``recvbuf`` if it is an optimizer, or an `Assign` to the array."""
        if not self._is_array:
            return recvbuf
        assign = Assign.__new__(Assign)  # its array has been checked
        assign.array = recvbuf
        return assign

    def refers_by(self, reference: Any) -> bool:
        """Return whether a weak reference is this object's to ``recvbuf``."""
        return reference is self._recvbuf

    def same(self, recvbuf: Any) -> bool:
        """Return whether ``recvbuf`` is this receiver with the same arrays; their shapes may have changed."""
        if not self.complete or self._recvbuf() is not recvbuf:
            return False
        if self._is_array:
            return True
        state = recvbuf.state
        if recvbuf.array is not self._array() or len(state) != len(self._state):
            return False
        return not state or all(array is reference() for array, reference in zip(state, self._state, strict=True))

    def valid(self, recvbuf: Any) -> bool:
        """Return whether ``recvbuf`` is this receiver with the same arrays, of the same shapes."""
        if not self.same(recvbuf):
            return False
        arrays: tuple[Any, ...] = (recvbuf,) if self._is_array else (recvbuf.array, *recvbuf.state)
        return all(is_receiver(array) and array.shape == self.shape for array in arrays)

    def known(self, algorithm: str, receiver: Receiver) -> Signature | None:
        """Return the signature of a call with dense v if it is cached, else None."""
        return self._signatures.get((algorithm, receiver.settings))

    def signature(self, algorithm: str, receiver: Receiver, *, sparse: bool = False) -> Signature:
        """Return the signature of a call, after checking the algorithm's name and the receiver's settings.

        Args:
            algorithm: The algorithm's name.
            receiver: The receiver.
            sparse: Whether v is CSR.
        """
        settings = receiver.settings
        slot = (algorithm, settings, sparse) if sparse else (algorithm, settings)
        found = self._signatures.get(slot)
        if found is None:
            check_algorithm(algorithm, sparse=sparse)
            receiver.check()
            name = None if self.block is None else self.block.name
            key = (receiver.shape, receiver.dtype.str, *receiver.kind, name, algorithm)
            if sparse:
                key = (*key, "csr", receiver.skips_zeros)
            if len(self._signatures) >= MOST:
                self._signatures.clear()
            rest = normal(settings), self._addresses, self.options.compared
            found = self._signatures[slot] = Signature(key, rest)
        return found


class Receivers:
    """The checked receivers of a communicator, by identity.

    Args:
        options: The options of the communicator.
        owns: Returns whether exactly the ranks of this node share a block of memory.
    """

    def __init__(self, options: Options, owns: Callable[[Block], bool]) -> None:
        self._options = options
        self._owns = owns
        self._cached: dict[int, CachedReceiver] = {}

    def find(self, recvbuf: Any) -> CachedReceiver | None:
        """Return the cached receiver of ``recvbuf``, which may have changed, or None."""
        return self._cached.get(id(recvbuf))

    def checked(self, recvbuf: Any) -> CachedReceiver:
        """Return the cached receiver of ``recvbuf``, after checking ``recvbuf`` if it is new or has changed.

        Raises:
            TypeError, ValueError: ``recvbuf`` cannot take a sum.
        """
        cached = self.find(recvbuf)
        if cached is not None and cached.valid(recvbuf):
            return cached
        receiver = recvbuf if isinstance(recvbuf, Receiver) else Assign(recvbuf)
        receiver.check()
        block = find(receiver.array)
        state = [array for array in receiver.state if array is not None]
        if any(np.may_share_memory(array, receiver.array) for array in state):
            raise ValueError("the receiver's state shares memory with its array")
        for array in (receiver.array, *state):
            its = find(array)
            if its is not None and not self._owns(its):
                raise ValueError("the receiver is shared by other ranks than this communicator's; use its `shared`")
            if (its is None) != (block is None):
                raise ValueError("the receiver's state must lie where its array does, both in shared memory or neither")
        if len(self._cached) >= MOST:
            self._cached.pop(next(iter(self._cached)), None)
        forget = partial(_forget, weakref.ref(self), id(recvbuf))
        cached = self._cached[id(recvbuf)] = CachedReceiver(recvbuf, receiver, block, self._options, forget)
        return cached

    def drop(self, key: int, reference: Any) -> None:
        """Drop a receiver whose object is gone, so that shared memory in which it lay is freed."""
        cached = self._cached.get(key)
        if cached is not None and cached.refers_by(reference):
            del self._cached[key]


def _forget(receivers: weakref.ref[Receivers], key: int, reference: Any) -> None:
    found = receivers()
    if found is not None:
        found.drop(key, reference)


def check_factors(factors: Any, cached: CachedReceiver, receiver: Receiver, op: MPI.Op, options: Options) -> None:
    """Raise TypeError or ValueError unless a receiver can take the sum of these factors."""
    wire = options.wire
    if not isinstance(factors, Factors):
        raise TypeError(f"sendbuf must be Factors when recvbuf is an optimizer, got {type(factors).__name__}")
    if op is not MPI.SUM and op != MPI.SUM:
        raise ValueError("op must be MPI.SUM with Factors: other reductions of uᵀv need the dense matrix")
    factors.check()
    u, v, shape = factors.u, factors.v, cached.shape
    if (u.shape[1], v.shape[1]) != shape:
        raise ValueError(f"the receiver must have the shape {factors.shape} of the factors, got {shape}")
    if u.dtype != cached.dtype:
        raise ValueError(f"the receiver must have the dtype {u.dtype} of the factors, got {cached.dtype}")
    if wire is not None and u.dtype != np.float32:
        raise TypeError(f"wire={wire!r} takes float32 factors, got {u.dtype}")
    if factors.sparse:
        if wire is not None:
            raise TypeError(f"wire={wire!r} takes dense v only; pass v.toarray(), or a Comm without wire")
        v = v.data
    for array in (receiver.array, *receiver.state):
        if array is not None:
            for name, factor in (("u", u), ("v", v)):
                if np.may_share_memory(factor, array):
                    raise ValueError(f"{name} shares memory with the receiver; copy it first")
    if options.check_finite:
        check_finite("u", factors.u)
        check_finite("v", factors.v)


def normal(settings: tuple[object, ...]) -> tuple[object, ...]:
    """Return settings in the form in which ranks compare them, with all numbers as floats."""
    return tuple(float(value) if isinstance(value, Real) else value for value in settings)


def _address(array: np.ndarray | None) -> object:
    """Return the part of an array's address that has to be equal on all ranks; "" for an array yet to be created."""
    if array is None:
        return ""
    block = find(array)
    return None if block is None else (block.name, block.offset(array))


def describe_call(factors: Any, receiver: Any, algorithm: str, options: Options) -> str:
    """Describe what a rank passed; never raise."""
    if not isinstance(factors, Factors):
        return f"{type(factors).__name__} and {type(receiver).__name__}"
    if not isinstance(receiver, Receiver):
        target, arrays = f"array {receiver.shape} {receiver.dtype}", [receiver]
    else:
        target, arrays = repr(receiver), [receiver.array, *receiver.state]
        if "steps" in vars(receiver):
            target += f" after {receiver.steps} steps"
    for array in arrays:
        address = _address(array)
        if address == "":
            target += ", state not yet created"
        elif isinstance(address, tuple):
            target += f", in shared memory {address[0][:8]}+{address[1]}"
    form = " with CSR v" if factors.sparse else ""
    return f"{factors.shape} {factors.dtype} Factors{form} into {target}, algorithm {algorithm!r}{options.described}"
