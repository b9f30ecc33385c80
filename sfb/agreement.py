"""Agreement: ranks find out together, before a collective, that their arguments do not fit."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from itertools import groupby

import numpy as np
from mpi4py import MPI

__all__ = ["Agreement", "MismatchError"]

_FAILED = np.iinfo(np.int64).max  # above every digest: this rank's own arguments are wrong


class MismatchError(ValueError):
    """Ranks entered one collective with arguments that do not fit together."""


class Agreement:
    """One small Allreduce that compares what the ranks of a communicator are about to do.

    Args:
        comm: The library's own communicator.
    """

    def __init__(self, comm: MPI.Intracomm) -> None:
        self._comm = comm
        self._header = np.zeros(4, np.int64)
        self._spec = [self._header, 4, MPI.INT64_T]
        self._digests: dict[object, int] = {}

    def check(
        self,
        call: str,
        signature: object,
        describe: Callable[[], str],
        *,
        size: int = 0,
        error: Exception | None = None,
    ) -> tuple[int, int]:
        """Compare ``signature`` with every other rank's; collective.

        Args:
            call: The user's call, for the message.
            signature: What has to be equal on all ranks; its repr is compared.
            describe: What this rank passed, in words; called only when something is wrong.
            size: A number ≥ 0 that may differ, the samples of this rank.
            error: What is wrong with this rank's own arguments, if anything.

        Returns:
            The largest and the smallest ``size`` of all ranks.

        Raises:
            MismatchError: Signatures differ; every rank raises, naming all of them.
            Exception: A rank passed an ``error``; every rank raises one of its type, naming the rank.
        """
        digest = self._digest((call, signature)) if error is None else _FAILED
        header = self._header
        header[:] = digest, -digest, size, -size
        self._comm.Allreduce(MPI.IN_PLACE, self._spec, MPI.MAX)
        largest, smallest, most, least = header.tolist()
        if largest == -smallest and largest != _FAILED:
            return most, -least
        self._raise(call, describe, error)
        raise AssertionError("unreachable")  # pragma: no cover

    def check_result(self, call: str, error: Exception | None) -> None:
        """Raise on every rank if a step that can fail, such as an allocation, failed on one; collective."""
        self.check(call, "result", lambda: "success", error=error)

    def _digest(self, signature: object) -> int:
        digest = self._digests.get(signature)
        if digest is None:
            if len(self._digests) >= 4096:
                self._digests.clear()
            bits = int.from_bytes(blake2b(repr(signature).encode(), digest_size=8).digest(), "big")
            digest = self._digests[signature] = bits >> 2
        return digest

    def _raise(self, call: str, describe: Callable[[], str], error: Exception | None) -> None:
        mine = ("", f"{call} with {describe()}") if error is None else (type(error).__name__, str(error) or repr(error))
        reports = self._comm.allgather(mine)
        failures = [(rank, report) for rank, report in enumerate(reports) if report[0]]
        if failures:
            kind = _KINDS.get(failures[0][1][0], RuntimeError)
            raise kind(f"{call}: {_by_rank(failures)}") from error
        raise MismatchError(f"ranks disagree: {_by_rank(list(enumerate(reports)))}")


_KINDS: dict[str, type[Exception]] = {k.__name__: k for k in (TypeError, ValueError, MemoryError, MismatchError)}


def _by_rank(reports: list[tuple[int, tuple[str, str]]]) -> str:
    """Join the reports, ranks with the same one together: "ranks 0, 2-3: …; rank 1: …"."""
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
