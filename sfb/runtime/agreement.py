"""Agreement: ranks find out together, before a collective, that their arguments do not fit."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any

import numpy as np
from mpi4py import MPI

from sfb.kernels import header, status
from sfb.kernels.header import PLAIN
from sfb.runtime.board import Board
from sfb.runtime.errors import raise_reported, report
from sfb.runtime.limits import EAGER_LIMIT
from sfb.runtime.rounds import Rounds
from sfb.runtime.steps import ALONE, run

__all__ = ["Agreement", "Meeting", "compare", "on_all_ranks"]

_PLAIN_PATIENCE = 5.0  # seconds to tell other nodes of a disagreement on this one; they may not be listening


class Meeting:
    """One call that the ranks are to agree on.

    Attributes:
        number: Of the call on its communicator, the same on all ranks.
        counts: Once settled, the sizes of all ranks, where they differ.
        elapsed: Once settled, nanoseconds by the times that the ranks gave; only where that was asked for.
        parcel: The kind and the bytes of this rank's parcel; 0 and 0 if it has none.
        values: What is summed in its place, if anything is.
        parcels: Once settled, those of all ranks in their order, if all are of the same kind.
        starts: Where the messages of nodes begin, and the last ends, if they have been exchanged already.
        waits: Whether no other call is under way.
    """

    __slots__ = (
        "call",
        "counts",
        "describe",
        "digest",
        "elapsed",
        "error",
        "number",
        "parcel",
        "parcels",
        "size",
        "starts",
        "values",
        "verdict",
        "waits",
    )

    def __init__(
        self,
        call: str,
        number: int,
        digest: int,
        size: int,
        describe: Callable[[], str],
        error: Exception | None,
        parcel: tuple[int, int] = (0, 0),
        waits: bool = True,
    ) -> None:
        self.call = call
        self.number = number
        self.digest = digest
        self.size = size
        self.describe = describe
        self.error = error
        self.parcel = parcel
        self.waits = waits
        self.values: np.ndarray | None = None
        self.parcels: list[np.ndarray] | None = None
        self.starts: list[int] | None = None
        self.counts: np.ndarray | None = None
        self.elapsed = 0
        self.verdict = status.PENDING


class Agreement:
    """Compares what the ranks of a communicator are about to do, by the node's memory and, between nodes, messages.

    Every rank shows a header, its digest of the call, a size and a time, to its node. The first rank
    of each node exchanges them with those of other nodes (`sfb.runtime.rounds`), and announces the outcome.

    Where every rank is a node of its own, a rank may send a parcel of bytes behind its header, which
    all others have then once they agree; or the ranks add up values.

    Args:
        world: The library's own communicator.
        board: That of this rank's node.
        node_of: For each rank of the world, the number of its node.

    Attributes:
        number: Of the last call.
        words: Memory for the messages of all nodes in a call that blocks, this one's first.
        head: Words of a message before its parcel.
        room: Memory for the parcel of the next such call, bytes; empty where none may be sent.
        spare: Where the parcels of all may be put in order, bytes; likewise.
        summed: Memory for values to be summed in such a call, bytes; empty where there are none.
        received: Memory for messages, words; in place of ``spare``.
        rounds: Of messages between nodes.
    """

    def __init__(self, world: MPI.Intracomm, board: Board, node_of: Sequence[int]) -> None:
        from sfb.kernels import sync

        self._world = world
        self._board = board
        self._sync = sync
        self.number = 0
        nodes = max(node_of) + 1
        self._members = [[rank for rank, its in enumerate(node_of) if its == node] for node in range(nodes)]
        self._home = node_of[world.rank]
        self._largest = max(len(members) for members in self._members)
        # A node sends the words of its headers, the kind and the bytes of its parcel, and that.
        self.head = header.head_words(self._largest)
        self.rounds = Rounds(world, board, self._members, self._home, self.head)
        self._ranks = np.array([len(self._members[node]) for node in self.rounds.order])
        room = EAGER_LIMIT // nodes // 8 if nodes > 1 and self._largest == 1 else 0
        self.words = np.empty(nodes * (self.head + room), np.int64)
        self.room = self.words[self.head : self.head + room].view(np.uint8)
        self.received = np.empty_like(self.words)
        self.spare = self.received.view(np.uint8)
        self.summed = np.empty(8 * room if self.rounds.sums else 0, np.uint8)

    def check(
        self,
        call: str,
        signature: object,
        describe: Callable[[], str],
        *,
        size: int = 0,
        error: Exception | None = None,
    ) -> Meeting:
        """Compare ``signature`` with every other rank's; collective. `open` says what the arguments are."""
        meeting = self.open(call, signature, describe, size=size, error=error, wait=True)
        run(self.steps(meeting))
        return meeting

    def begin(self) -> int:
        """Return the number of the next call."""
        self.number += 1
        return self.number

    def plain(
        self, call: str, number: int, verdict: int | None = None, *, digest: int = PLAIN, error: Exception | None = None
    ) -> bool:
        """Find out whether all ranks of this node pass plain arrays in a call, and return whether digests agree, too.

        Args:
            call: The user's call, for the message.
            number: Of the call.
            verdict: What this rank has seen of the others, if they have been shown its ``digest`` already.
            digest: `PLAIN`, or a number below that has to be equal on all ranks, as far as they are to do something.
            error: What is wrong with this rank's own arguments, if anything.

        Raises:
            MismatchError, Exception: As `steps`, on the ranks of this node, and on all if those listen.
        """
        meeting = self._plain(call, number, verdict, digest, 0, error)
        if meeting.verdict == status.DIFFERENT or error is not None:
            run(self._fail(meeting))
        return meeting.verdict == status.AGREED and digest < PLAIN

    def plain_everywhere(self, call: str, number: int, digest: int, size: int, elapsed: int) -> tuple[bool, int]:
        """Find out the same of the ranks of all nodes, and whether their ``size`` is the same; otherwise as `plain`.

        Returns:
            That, and the longest ``elapsed`` of all ranks.
        """
        meeting = self._plain(call, number, None, digest, size, spent=self._sync.times(elapsed, 0))
        if meeting.verdict == status.DIFFERENT:
            run(self._fail(meeting))
        run(self._across(meeting))
        if meeting.verdict == status.DIFFERENT:
            run(self._raise(meeting, True))
        return meeting.verdict == status.AGREED and digest < PLAIN, meeting.elapsed

    def _plain(
        self,
        call: str,
        number: int,
        verdict: int | None,
        digest: int,
        size: int,
        error: Exception | None = None,
        spent: int = 0,
    ) -> Meeting:
        """Return a call of plain arrays, once all ranks of the node have shown theirs."""
        if error is not None:
            digest = header.FAILED
        if verdict is None:
            verdict = self._board.meet(number, digest, size, spent, wait=True)
        meeting = Meeting(call, number, digest, size, _describe_plain, error)
        meeting.verdict = verdict
        if verdict == status.PENDING:
            run(self._on_node(meeting))
        return meeting

    def open(
        self,
        call: str,
        signature: object,
        describe: Callable[[], str],
        *,
        size: int = 0,
        spent: tuple[int, int] = (0, 0),
        error: Exception | None = None,
        wait: bool = False,
        parcel: tuple[int, int] = (0, 0),
        values: np.ndarray | None = None,
    ) -> Meeting:
        """Show the other ranks what this one is about to do, without waiting for them.

        Args:
            call: The user's call, for the message.
            signature: What has to be equal on all ranks; its repr is compared. Or the `digest` of that.
            describe: What this rank passed, in words; called only when something is wrong.
            size: A number ≥ 0 that may differ, the samples of this rank.
            spent: Nanoseconds of work in the call before, and of waiting, for the choice of algorithms.
            error: What is wrong with this rank's own arguments, if anything.
            wait: Look for the others a while, as `steps` is going to be waited for at once.
            parcel: A number > 0 that says what has been put into `room`, and its bytes; for a call that waits.
            values: In place of bytes, a matrix in `summed`, to be summed as `Rounds.sum` does.
        """
        number = self.begin()
        digest = signature if type(signature) is int else self.digest(call, signature)
        if error is not None:
            digest, parcel, values = header.FAILED, (0, 0), None
        meeting = Meeting(call, number, digest, size, describe, error, parcel, wait)
        meeting.values = values
        meeting.verdict = self._board.meet(number, digest, size, self._sync.times(*spent), wait=wait)
        return meeting

    def carried(self, meeting: Meeting, starts: list[int]) -> None:
        """Let `steps` go on from messages that have been exchanged, with a meeting that the board has not seen."""
        meeting.starts = starts
        meeting.verdict = self._board.meet(meeting.number, meeting.digest, meeting.size, 0, wait=False)

    def settled(self, meeting: Meeting) -> bool:
        """Return whether there is nothing more to find out: all ranks of a single node agree, sizes included."""
        return meeting.verdict == status.AGREED and len(self._members) == 1 and meeting.digest != header.FAILED

    def steps(self, meeting: Meeting, *, timed: bool = False) -> Iterator[Any]:
        """Yield what is to be waited for until the ranks agree.

        Args:
            meeting: To be settled.
            timed: Find the time that the call before has taken, too.

        Raises:
            MismatchError: Signatures differ; every rank raises, naming all of them.
            Exception: A rank passed an ``error``; every rank raises one of its type, naming the rank.
        """
        sync, board = self._sync, self._board
        if meeting.verdict == status.PENDING:
            yield from self._on_node(meeting)
        if len(self._members) == 1:
            if meeting.verdict == status.DIFFERENT or meeting.digest == header.FAILED:
                yield from self._raise(meeting, True)
            if meeting.verdict == status.UNEVEN:
                meeting.counts = board.headers(meeting.number)[:, header.SIZE].copy()
            if timed:
                meeting.elapsed = sync.elapsed(board.headers(meeting.number)[:, header.NOTE].copy())
            return
        if meeting.verdict == status.DIFFERENT and (board.headers(meeting.number)[:, header.DIGEST] <= PLAIN).any():
            yield from self._fail(meeting)
        yield from self._across(meeting)
        if meeting.verdict == status.DIFFERENT:
            yield from self._raise(meeting, True)
        if meeting.verdict == status.UNEVEN and meeting.counts is None:
            meeting.counts = np.empty(self._world.size, np.int64)
            yield self._world.Iallgather(np.array([meeting.size], np.int64), meeting.counts)

    def _across(self, meeting: Meeting) -> Iterator[Any]:
        """Set the verdict to that of all nodes."""
        board = self._board
        if board.me == 0:
            verdict = yield from self._between_nodes(meeting)
            assert verdict is not None  # it waits as long as it takes
            meeting.verdict = verdict
        else:
            if not board.was_announced(meeting.number, wait=False):
                yield _Announcement(board, meeting)
            meeting.verdict, _, meeting.elapsed = board.announced(meeting.number)

    def _fail(self, meeting: Meeting) -> Iterator[Any]:
        """Raise on all ranks, or on those of this node alone if others pass plain arrays and listen to nobody."""
        everybody = True
        if len(self._members) > 1:
            if self._board.me == 0:
                everybody = (yield from self._between_nodes(meeting, _PLAIN_PATIENCE)) is not None
            else:
                if not self._board.was_announced(meeting.number, wait=False):
                    yield _Announcement(self._board, meeting)
                everybody = bool(self._board.announced(meeting.number)[1])
        yield from self._raise(meeting, everybody)

    def _on_node(self, meeting: Meeting) -> Iterator[Any]:
        arrival = _Arrival(self._board, meeting)
        if not arrival.Test():
            yield arrival

    def _between_nodes(self, meeting: Meeting, patience: float | None = None) -> Generator[Any, None, int | None]:
        """Gather the headers of all nodes, on the first rank of each, announce what they say, and return the verdict.

        Args:
            meeting: To be settled.
            patience: Seconds after which to give up and return None, if that is allowed: this node disagrees within
                itself.
        """
        board, sync, rounds, nodes = self._board, self._sync, self.rounds, len(self._members)
        # Where the call does not wait, others may be under way.
        words = self.words if meeting.waits else np.empty(self.words.size, np.int64)
        starts = meeting.starts
        if starts is None:
            head = self.head
            words[: header.WORDS * board.ranks] = board.headers(meeting.number).reshape(-1)
            words[head + header.KIND], words[head + header.NBYTES] = meeting.parcel
            if meeting.values is not None:
                starts = yield from rounds.sum(meeting.call, meeting.number, words, self.received, meeting.values)
            else:
                length = header.message_words(head, meeting.parcel[1])
                starts = yield from rounds.gather(meeting.call, meeting.number, words, length, patience)
        if len(starts) <= nodes:
            board.announce(meeting.number, (status.DIFFERENT, 0, 0))
            return None
        sizes, spent = np.empty((2, self._world.size), np.int64)
        verdict, meeting.elapsed, kind = sync.judge(words, self._ranks, self.head, sizes, spent)
        if board.ranks > 1:
            board.announce(meeting.number, (verdict, 1, meeting.elapsed))
        if self._largest == 1:  # ranks are numbered as their nodes are
            order = rounds.order
            if verdict == status.UNEVEN:
                meeting.counts = np.empty_like(sizes)
                meeting.counts[order] = sizes
            if kind and verdict != status.DIFFERENT:
                content, head = words.view(np.uint8), self.head
                parcels = [
                    content[8 * (start + head) :][: words[start + head + header.NBYTES]] for start in starts[:-1]
                ]
                meeting.parcels = [parcels[order.index(node)] for node in range(nodes)]
        return verdict

    @staticmethod
    def digest(call: str, signature: object) -> int:
        """Return a number that stands for a call and what has to be equal on all ranks."""
        bits = int.from_bytes(blake2b(repr((call, signature)).encode(), digest_size=8).digest(), "big")
        return (bits >> 2) + 1

    def _raise(self, meeting: Meeting, everybody: bool) -> Iterator[Any]:
        """Gather what the ranks passed, of all or of this node, and raise."""
        yield ALONE  # others may have to finish older calls before they come here
        error = meeting.error
        mine = report(error) if error is not None else ("", f"{meeting.call} with {meeting.describe()}")
        reports = self._world.allgather(mine) if everybody else self._board.gather(mine)
        members = range(self._world.size) if everybody else self._board.members
        raise_reported(meeting.call, list(zip(members, reports, strict=True)), error)


class _Arrival:
    """The moment when every rank of the node has shown its header."""

    def __init__(self, board: Board, meeting: Meeting) -> None:
        self._board = board
        self._meeting = meeting

    def Test(self, wait: bool = False) -> bool:
        self._meeting.verdict = self._board.look(self._meeting.number, wait=wait)
        return self._meeting.verdict != status.PENDING

    def Wait(self) -> None:
        meeting = self._meeting
        self._board.wait(lambda: self.Test(True), lambda: self._board.missing(meeting.number, 1), meeting.call)


class _Announcement:
    """The moment when the first rank of the node has said what the nodes agree on."""

    def __init__(self, board: Board, meeting: Meeting) -> None:
        self._board = board
        self._meeting = meeting

    def Test(self, wait: bool = False) -> bool:
        return self._board.was_announced(self._meeting.number, wait=wait)

    def Wait(self) -> None:
        # Its first rank knows whom it waits for, unless it is missing itself.
        meeting, board = self._meeting, self._board
        board.wait(lambda: self.Test(True), lambda: board.missing(meeting.number, 1), meeting.call)


def _describe_plain() -> str:
    return "a plain buffer, not Factors"


def compare(comm: MPI.Intracomm, call: str, text: str = "", error: Exception | None = None) -> None:
    """Raise on every rank if one has an error, or if their texts differ; collective, for rare calls.

    Raises:
        MismatchError: The texts differ.
        Exception: A rank passed an ``error``; every rank raises one of its type, naming the rank.
    """
    reports = comm.allgather(("", text) if error is None else report(error))
    if any(said != ("", text) for said in reports):
        raise_reported(call, list(enumerate(reports)), error)


@contextmanager
def on_all_ranks(comm: MPI.Intracomm, call: str) -> Iterator[None]:
    """Raise on every rank what the block of a ``with`` statement raises on one; collective.

    Args:
        comm: The ranks that run the block.
        call: The user's call, for the message.

    Raises:
        Exception: As `compare` does.
    """
    error: Exception | None = None
    try:
        yield
    except Exception as caught:  # whatever it is, the other ranks wait to hear of it
        error = caught
    compare(comm, call, error=error)
