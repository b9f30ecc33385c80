"""Fused exchanges: within a node, one call of a kernel does the whole exchange of a rank."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import numpy as np

import sfb.kernels as kernels
from sfb.collectives import dense, node
from sfb.collectives.persistent import KernelExchange, PendingCall, is_brief, kernel_arguments
from sfb.collectives.problem import Problem
from sfb.kernels import status
from sfb.runtime.board import SPINS
from sfb.runtime.team import Team
from sfb.runtime.windows import Block

__all__ = ["FusedExchange"]


class FusedExchange(KernelExchange):
    """An exchange within a node by ``node`` or ``dense``, whose kernel also posts the header.

    The kernel writes its data into the staging memory of the node. Older exchanges may use that memory, so none may be
    under way when this one starts. Its phases and its bits are those of the algorithm in steps.
    """

    concurrent = False

    def __init__(self, algorithm: str, problem: Problem, team: Team) -> None:
        from sfb.kernels import fused, sync

        super().__init__(algorithm, problem, team)
        self._arrived = sync.ARRIVED
        self._phase = fused.phase
        self._worked, self._waited = fused.WORKED, fused.WAITED
        self._kernel: Callable[..., int] = getattr(fused, algorithm)
        self._block: Block | None = None
        self._of: Problem | None = None
        self._bound = np.empty(0, np.int64)
        self._pieces: int | None = None
        self._user = 0

    @staticmethod
    def serves(algorithm: str, problem: Problem, team: Team) -> bool:
        """Return whether an exchange can be fused."""
        near = team.nodes == 1 and team.size > 1 and problem.wire is None
        return near and algorithm in ("node", "dense") and problem.fits and is_brief(problem, team.threads)

    @property
    def changed(self) -> bool:
        """Whether this rank has seen the headers of all."""
        return self._phase(self._bound, self._pieces) != self._arrived

    def start(self, pending: PendingCall) -> bool:
        """Write the data of this rank, post the header, and go on as far as possible."""
        agree = self._team.agree
        pending.number = agree.number + 1
        if not self._begin(pending, pending.digest):
            return False
        agree.number += 1
        return True

    def wait(self) -> int:
        """Go on to the end."""
        if self.code == status.PENDING:
            self._team.board.wait(lambda: self._advance(SPINS), self._missing, self._name)
        return self.code

    def hand_over(self, pending: PendingCall) -> None:
        """Let the call go on from the verdict on the headers."""
        self._team.staging.disclaim(self._number)
        pending.verdict = self.code

    def run(self, pending: PendingCall) -> Generator[Any, None, None]:
        """Do the exchange of an agreed call, without a header."""
        if not self._begin(pending, 0):
            raise RuntimeError("a kernel refused arguments that passed all checks")
        if self.code == status.PENDING:
            yield self

    def _begin(self, pending: PendingCall, digest: int) -> bool:
        staging, problem = self._team.staging, pending.problem or self.problem
        if staging.block is not self._block or self._block is None or problem is not self._of:
            self._bind(problem)
        self._name, self._number = pending.call, pending.number
        self._user = staging.claim(self._number)
        try:
            self._arguments = self._user, digest, *kernel_arguments(pending, self.problem.dtype)
            self._advance(SPINS if pending.blocking or pending.brief else 0)
        except (TypeError, AttributeError, MemoryError):  # not what the kernel is compiled for, or no room
            self.code = status.UNFIT
        if self.code == status.UNFIT:
            staging.disclaim(self._number)
        return self.code != status.UNFIT

    def _bind(self, problem: Problem) -> None:
        """Bind what calls have in common whose ranks have the same samples, over the present staging memory."""
        team, module = self._team, node if self.algorithm == "node" else dense
        self._block = team.staging.grow(module.staging_bytes(self.problem))
        self._bound, self._pieces = module.bind(problem, team, self._block)
        self._of = problem

    def _advance(self, spins: int) -> bool:
        user, digest, *rest = self._arguments
        scratch = kernels.scratch_for(self.problem.depth, rest[2])
        self.code = self._kernel(self._bound, spins, self._number, user, digest, *rest, scratch)
        if self.code == status.PENDING:
            return False
        self.rebuild_seconds = int(self._bound[self._worked]) * 1e-9
        self.waited = int(self._bound[self._waited]) * 1e-9
        return True

    def _missing(self) -> list[int]:
        """Return the ranks that have not reached the phase for which this one waits."""
        phase, board = self._phase(self._bound, self._pieces), self._team.board
        users = self._user and board.missing(self._user, board.last_phase)
        return users or board.missing(self._number, phase)
