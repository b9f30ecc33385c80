"""Eager exchanges: with one rank per node, a small payload travels beside the header of the agreement."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from mpi4py import MPI

import sfb.kernels as kernels
from sfb.collectives import broadcast, dense
from sfb.collectives.persistent import KernelExchange, PendingCall, is_brief, kernel_arguments
from sfb.collectives.problem import Problem
from sfb.kernels import status
from sfb.runtime.limits import EAGER_LIMIT, SPINS, tag
from sfb.runtime.rounds import RoundsRequest
from sfb.runtime.team import Team

__all__ = ["EagerBuffers", "EagerExchange"]

# Looks for messages in `start` of a short exchange that does not block.
_BRIEF = SPINS // 8
_PAYLOADS = {"broadcast": broadcast.payload, "dense": dense.payload}


class EagerBuffers(NamedTuple):
    """The memory of one eager exchange under way.

    Attributes:
        words: Words for the messages of all ranks.
        received: As many words, for messages that arrive or for payloads in the order of ranks.
        values: Bytes for a product that the rounds sum.
    """

    words: np.ndarray
    received: np.ndarray
    values: np.ndarray

    @classmethod
    def allocate(cls, team: Team) -> EagerBuffers:
        """Return new memory, with room for any payloads that other ranks may send."""
        size = team.size * team.agree.head + EAGER_LIMIT // 8
        return cls(np.empty(size, np.int64), np.empty(size, np.int64), np.empty(2 * EAGER_LIMIT // team.size, np.uint8))


class EagerExchange(KernelExchange):
    """An exchange by ``broadcast`` or ``dense`` with one rank per node, in the messages of the agreement.

    A rank sends its factors, or its product, beside its header. The bits are those of the algorithm in steps. With
    unlike S, a product goes beside the header that says S; ranks take the sum if the plan serves the S of all.

    Args:
        algorithm: The algorithm's name.
        problem: The exchange.
        team: The ranks.
        buffers: Free buffers of the team: this exchange acquires one for each call, and releases it.
    """

    def __init__(self, algorithm: str, problem: Problem, team: Team, buffers: list[EagerBuffers]) -> None:
        from sfb.kernels import eager, rounds

        super().__init__(algorithm, problem, team)
        payload = _payload(algorithm, problem)
        assert payload is not None
        self._payload, self._nbytes = payload
        self._eager, self._rounds = eager, rounds
        self._state = np.zeros(rounds.STATE, np.int64)
        # The words at which the messages begin; without payloads until the kernel has gathered some.
        self._starts = np.arange(team.size + 1, dtype=np.int64) * team.agree.head
        self._room = kernels.room_for(problem.depth, problem.shape[1], problem.itemsize)
        self._idle = buffers
        self._buffers: EagerBuffers | None = None
        self._bound = np.empty(0, np.int64)

    @staticmethod
    def serves(algorithm: str, problem: Problem, team: Team) -> bool:
        """Return whether an exchange can be eager."""
        if not (problem.one_rank_per_node and is_brief(problem, team.threads)):
            return False
        if _samples(problem) is None:
            return False
        return _payload(algorithm, problem) is not None

    @property
    def changed(self) -> bool:
        """Whether the messages of all ranks have come."""
        return self.code != status.PENDING

    def start(self, pending: PendingCall) -> bool:
        """Send the header and the payload, and go on as far as possible."""
        agree = self._team.agree
        self._name, self._number = pending.call, agree.number + 1
        buffers: EagerBuffers | None = None
        try:
            arguments = kernel_arguments(pending, self.problem.dtype)
            buffers = self._idle.pop() if self._idle else EagerBuffers.allocate(self._team)
            if buffers is not self._buffers:
                self._bind(buffers)
            self._arguments = tag(self._number), pending.digest, *arguments
            self._advance(SPINS if pending.blocking else _BRIEF if pending.brief else 0)
        except (TypeError, AttributeError, MemoryError):  # not what the kernel is compiled for, or no room
            self.code = status.UNFIT
        except BaseException:  # an interrupt, or an error of MPI: messages are under way
            agree.number = self._number
            self._keep()
            raise
        if self.code == status.UNFIT:
            if buffers is not None:
                self._idle.append(buffers)
            return False
        pending.number = agree.number = self._number
        if self.code == status.PENDING:
            self._keep()
        return True

    def wait(self) -> int:
        """Go on to the end; after an interrupt, another call goes on from there."""
        if self.code == status.PENDING:
            rounds, number = self._team.agree.rounds, self._number
            RoundsRequest(rounds, self._name, number, self._go, self._state, self._bound, self._buffers).Wait()
        self._check()
        return self.code

    def hand_over(self, pending: PendingCall) -> None:
        """Let the call go on from the messages that the ranks have exchanged."""
        self._check()
        assert self._buffers is not None
        self._team.agree.resume(pending, (self._buffers.words.copy(), self._starts.tolist()))
        self._idle.append(self._buffers)

    def _bind(self, buffers: EagerBuffers) -> None:
        """Bind what all calls have in common, over these buffers."""
        problem, agree, eager = self.problem, self._team.agree, self._eager
        (rows, columns), words = problem.shape, buffers.words
        gathered, middle, more = buffers.received.view(problem.dtype), problem.depth * rows, self._starts
        if self._payload == eager.FACTORS:
            first = gathered[:middle].reshape(problem.depth, rows)
            second = gathered[middle : middle + problem.depth * columns].reshape(problem.depth, columns)
        elif self._payload == eager.PRODUCTS:
            first = second = gathered[: rows * columns].reshape(problem.shape)
        else:
            more = buffers.received
            first = second = buffers.values[: problem.dense_bytes].view(problem.dtype).reshape(problem.shape)
        mpi, plan = agree.rounds.mpi, agree.rounds.plan
        samples = _samples(problem)
        self._bound = eager.bind(
            self._payload, agree.head, samples, self._nbytes, mpi, plan, words, more, first, second
        )
        self._buffers = buffers

    def _advance(self, spins: int) -> bool:
        scratch = kernels.scratch(self._room, self.problem.dtype)
        self.code = self._eager.exchange(self._bound, self._state, spins, *self._arguments, scratch)
        if self.code == status.PENDING:
            return False
        if self.code == status.UNFIT:
            return True
        if self.code > 0:
            raise MPI.Exception(self.code)
        self._team.agree.rounds.under_way.pop(self._number, None)
        self.rebuild_seconds = int(self._state[self._rounds.WORK]) * 1e-9
        if self.code in (status.DONE, status.DAMAGED):
            assert self._buffers is not None
            self._idle.append(self._buffers)
        return True

    def _check(self) -> None:
        if self.code == status.DAMAGED:
            raise self._team.agree.rounds.damage(int(self._state[self._rounds.WRONG]))

    def _keep(self) -> None:
        """Keep alive, whatever becomes of this object, the memory that MPI may write to."""
        self._team.agree.rounds.under_way[self._number] = self._state, self._bound, self._buffers

    def _go(self, spins: int) -> int:
        self._advance(spins)
        return self.code


def _samples(problem: Problem) -> int | tuple[int, int, int, int] | None:
    """Return S, or the bounds of unlike S; None for unlike S that no other call has."""
    if problem.uniform:
        return problem.deepest
    return None if problem.spread is None else problem.spread.bounds


def _payload(algorithm: str, problem: Problem) -> tuple[int, int] | None:
    payload = _PAYLOADS.get(algorithm)
    return None if payload is None else payload(problem)
