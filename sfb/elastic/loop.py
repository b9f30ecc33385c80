"""The loop of steps that goes on when a rank dies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mpi4py import MPI

import sfb
from sfb.elastic.keeper import Keeper
from sfb.elastic.membership import Loss, Membership
from sfb.runtime.agreement import compare
from sfb.runtime.team import check_comm

__all__ = ["Outcome", "run"]


@dataclass(frozen=True)
class Outcome:
    """How a run has ended on this rank.

    Attributes:
        state: The state after the last step, as ``setup`` has returned it last.
        comm: A communicator of the ranks that are left.
        losses: The deaths, in their order; the same on all ranks but for their seconds.

    >>> from mpi4py import MPI
    >>> from sfb.elastic import Outcome
    >>> Outcome({}, MPI.COMM_SELF, []).losses
    []
    """

    state: Mapping[str, Any]
    comm: MPI.Intracomm
    losses: list[Loss]


def run(
    step: Callable[[int], object],
    setup: Callable[[sfb.Comm], Mapping[str, Any]],
    steps: int,
    comm: MPI.Intracomm | None = None,
    *,
    every: int = 1,
    **options: Any,
) -> Outcome:
    """Take steps on all ranks; when a rank dies, the others go back to the last step that all have, and on; collective.

    A rank keeps a copy of the state after each step. The ranks that are left when one dies agree on the last step that
    all of them have completed, call ``setup`` with a communicator of their own, take over the state of that step, and
    go on. So no update is in the state of one rank and missing in that of another, and a run ends as one would that
    had these ranks in these steps. docs/elastic.md has more.

    Args:
        step: Takes the step with a number, from 0: called on all ranks alike. A true result, on all ranks alike, makes
            it the last one. What a later step needs of an earlier one is in the state. It waits for other ranks only in
            the communicator that ``setup`` got, in objects of this library made from it, and in collectives of
            communicators that all ranks share.
        setup: Makes what a step needs, from a `sfb.Comm` of the ranks that take part: `Comm.shared` arrays, plans,
            stores, PyTorch models that `sfb.torch.attach` attaches, and the ranks' parts of the data. Called at first,
            and again when ranks have died; all made before is then void. Returns the state, which is the same on all
            ranks: a mapping of names to NumPy arrays and optimizers of `sfb.optim`, whose values are set in place; to
            objects with ``state_dict`` and ``load_state_dict``, such as models and optimizers of PyTorch; to
            dictionaries of these; and to anything else that can be copied and pickled, which is replaced in the
            mapping. At first all ranks take the state of rank 0.
        steps: The largest number of steps, ≥ 0.
        comm: The ranks: COMM_WORLD by default.
        every: Steps from one copy to the next, ≥ 1; steps after the last copy are taken again.
        **options: Options of `sfb.Comm`.

    Returns:
        The `Outcome`. Other communicators of all ranks, COMM_WORLD too, still hold those that have died.

    Raises:
        RuntimeError: MPI would end the job when a rank dies, since the program was not started by Open MPI's
            ``mpirun --with-ft ulfm``; on every rank.
        TypeError, ValueError, MismatchError: Arguments are wrong, or ranks pass different numbers; on every rank.
        Exception: What ``step`` or ``setup`` raises on one rank; on the others one of that type which names the rank.

    Start this with ``mpirun --with-ft ulfm -n 4 python -m mpi4py script.py``::

        def setup(comm):
            global W, ranks
            W, ranks = sfb.optim.SGD(comm.shared((64, 32)), lr=0.1), comm
            return {"W": W}

        def step(number):
            u, v = factors_of(batch(number, ranks.rank, ranks.size), W.array)
            ranks.Allreduce(sfb.Factors(u, v), W)

        sfb.elastic.run(step, setup, 1000)

    Without ULFM:

    >>> import sfb.elastic
    >>> sfb.elastic.run(print, dict, 1000)  # doctest: +IGNORE_EXCEPTION_DETAIL
    Traceback (most recent call last):
    RuntimeError: start with `mpirun --with-ft ulfm`
    """
    world = MPI.COMM_WORLD if comm is None else comm
    check_comm("comm", world)
    compare(world, "elastic.run", f"elastic.run of {steps!r} steps with every={every!r}", _wrong(steps, every))
    ranks = Membership(world, "sfb.elastic.run")
    keeper = Keeper(ranks.check)

    def attempt() -> Mapping[str, Any]:
        with sfb.Comm(ranks.comm, **options) as own:
            state = setup(own)
            if not keeper.share(own):
                keeper.begin(own, state)
            keeper.restore(own, state)
            ranks.note(keeper.number)
            while not keeper.ended and keeper.number < steps:
                for number in range(keeper.number, min(keeper.number + every, steps)):
                    ended = bool(step(number))
                    if ended:
                        break
                keeper.keep(number + 1, state, ended=ended)
            return state

    return Outcome(ranks.survive(attempt), ranks.comm, ranks.losses)


def _wrong(steps: Any, every: Any) -> Exception | None:
    """Return what is wrong with the numbers of a run, None if they are right."""
    for name, value, least in (("steps", steps, 0), ("every", every, 1)):
        if not isinstance(value, int) or value < least:
            return ValueError(f"{name} must be a whole number ≥ {least}, got {value!r}")
    return None
