"""Errors that every rank raises when one rank finds a reason."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from sfb.kernels import KernelError

__all__ = ["MismatchError", "RankFailedError", "Report", "as_reported", "raise_reported", "report"]

# The name of an exception's type and its text; or "" and what the rank passed.
Report = tuple[str, str]


class MismatchError(ValueError):
    """Ranks have entered a collective with arguments that do not fit together.

    >>> from mpi4py import MPI
    >>> import numpy as np, sfb
    >>> x = np.ones(3)
    >>> with sfb.Comm(MPI.COMM_WORLD) as comm:
    ...     try:
    ...         comm.Allreduce(MPI.IN_PLACE, x)
    ...     except sfb.MismatchError as error:  # says what each rank passed
    ...         print(error)
    """


class RankFailedError(RuntimeError):
    """Ranks are gone, or do not answer; the message names them. What is left of the job cannot go on.

    Args:
        text: The message.
        ranks: The ranks that have failed, by their numbers in the communicator.

    Attributes:
        ranks: The same.
        changed: Whether the exchange that waited for them may have changed its receiver on this node.
        all_raise: All ranks raise it by themselves, so a rank that ends by it does not end the others before.

    >>> import sfb
    >>> sfb.RankFailedError("rank 3 is gone", [3]).ranks
    (3,)
    """

    all_raise = True

    def __init__(self, text: str, ranks: Sequence[int] = ()) -> None:
        super().__init__(text)
        self.ranks = tuple(ranks)
        self.changed = True


# Exceptions that keep their type on other ranks. All others arrive there as RuntimeError.
_KINDS: dict[str, type[Exception]] = {
    kind.__name__: kind
    for kind in (
        TypeError,
        ValueError,
        KeyError,
        BufferError,
        MemoryError,
        ImportError,
        ModuleNotFoundError,
        KernelError,
        MismatchError,
    )
}


def as_reported(kind: type[Exception]) -> type[Exception]:
    """Let an exception keep its type when other ranks raise what one rank reports; a decorator of its class."""
    _KINDS[kind.__name__] = kind
    return kind


def report(error: BaseException) -> Report:
    """Return the report of an error."""
    return type(error).__name__, str(error) or repr(error)


def raise_reported(call: str, reports: Sequence[tuple[int, Report]], error: Exception | None) -> None:
    """Raise the first error that ranks report, naming the ranks; `MismatchError` if none reports an error.

    Args:
        call: The user's call, for the message.
        reports: The number and the report of each rank.
        error: This rank's own error, if any, which becomes the cause.
    """
    failures = [(rank, said) for rank, said in reports if said[0]]
    if failures:
        kind = _KINDS.get(failures[0][1][0], RuntimeError)
        raise kind(f"{call}: {_by_rank(failures)}") from error
    raise MismatchError(f"ranks disagree: {_by_rank(reports)}")


def _by_rank(reports: Sequence[tuple[int, Report]]) -> str:
    """Join the reports, naming together the ranks with the same one: "ranks 0, 2-3: …; rank 1: …"."""
    ranks: dict[str, list[int]] = {}
    for rank, (_, text) in reports:
        ranks.setdefault(text, []).append(rank)
    return "; ".join(f"{_name(who)}: {text}" for text, who in ranks.items())


def _name(ranks: list[int]) -> str:
    runs = []
    for _, group in groupby(enumerate(ranks), lambda pair: pair[1] - pair[0]):
        run = [rank for _, rank in group]
        runs.append(f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)))
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(runs)}"
