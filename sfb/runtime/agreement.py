"""Agreement: before a collective, the ranks find out whether their arguments fit together."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any, TypeAlias

import numpy as np
from mpi4py import MPI

from sfb.kernels import header, status
from sfb.kernels.header import PLAIN
from sfb.runtime.board import Board, Event
from sfb.runtime.errors import RankFailedError, Report, raise_reported, report
from sfb.runtime.limits import EAGER_LIMIT
from sfb.runtime.rounds import Rounds
from sfb.runtime.seals import WORDS as SEAL_WORDS
from sfb.runtime.seals import DamagedMessageError, fault, seal
from sfb.runtime.steps import ALONE, run

__all__ = ["Agreement", "Proposal", "compare", "on_all_ranks"]

# Seconds for which a node tries to tell the others of a disagreement: those that pass plain arrays do not listen.
_PLAIN_PATIENCE = 5.0

# Returns whether calls of these digests and sizes go together.
Alike: TypeAlias = "Callable[[np.ndarray, np.ndarray], bool]"


class Proposal:
    """A call that a rank proposes to the others.

    Args:
        call: The user's call, for messages.
        text: A description of what this rank passed, for messages.
        blocking: Whether the caller is about to wait, and no other call is under way.

    Attributes:
        number: The number of the call on its communicator, the same on all ranks.
        digest: The number that stands for all that has to be equal on all ranks.
        size: A number ≥ 0 that may differ: the samples of this rank.
        error: The error in this rank's own arguments, None if they are right.
        verdict: A code of `sfb.kernels.status`; `PENDING` until the rank knows whether all agree.
        counts: The sizes of all ranks, once the ranks agree; None if they are equal.
        messages: The messages of all nodes and where each begins, if an eager exchange has gathered them already.
        own_error: Whether ranks that all have the same error raise it as it is.
    """

    # Class attributes: a call in a loop of small ones sets only what differs.
    number = digest = size = 0
    error: Exception | None = None
    verdict: int = status.PENDING
    counts: np.ndarray | None = None
    messages: tuple[np.ndarray, list[int]] | None = None
    own_error = False

    def __init__(self, call: str, text: str = "", *, blocking: bool = True) -> None:
        self.call = call
        self.text = text
        self.blocking = blocking

    def describe(self) -> str:
        """Describe what this rank passed, for messages."""
        return self.text


class Agreement:
    """The check that all ranks of a communicator propose the same call.

    Every rank posts a header, its digest of the call and a size, on the board of its node. The leader of each node
    exchanges the headers of its node with other leaders (`sfb.runtime.rounds`) and announces the verdict.

    Args:
        world: The library's own communicator.
        board: The board of this rank's node.
        node_of: For each rank of the world, the number of its node.
        checked: Whether messages between nodes have checksums.

    Attributes:
        number: The number of the last call.
        head: Words of a message before its payload.
        rounds: The rounds of messages between leaders.
    """

    def __init__(self, world: MPI.Intracomm, board: Board, node_of: Sequence[int], *, checked: bool = True) -> None:
        from sfb.kernels import sync

        self._world = world
        self._board = board
        self._sync = sync
        self._checked = checked
        self.number = 0
        nodes = max(node_of) + 1
        self._members = [[rank for rank, its in enumerate(node_of) if its == node] for node in range(nodes)]
        self._home = node_of[world.rank]
        self._largest = max(len(members) for members in self._members)
        self.head = header.head_words(self._largest)
        self.rounds = Rounds(world, board, self._members, self._home, self.head, checked=checked)
        self._ranks = np.array([len(self._members[node]) for node in self.rounds.order])
        # Other nodes may send payloads with their headers.
        payload = EAGER_LIMIT // nodes // 8 if nodes > 1 and self._largest == 1 else 0
        self._words = np.empty(nodes * (self.head + payload), np.int64)

    def check(self, call: str, text: str, error: Exception | None = None) -> None:
        """Raise on every rank, as `steps` does, if one has an error or if their texts differ; collective."""
        proposal = Proposal(call, text)
        proposal.digest, proposal.error = self.digest(call, text), error
        self.propose(proposal)
        run(self.steps(proposal))

    def begin(self) -> int:
        """Return the number of the next call."""
        self.number += 1
        return self.number

    def plain(self, proposal: Proposal, alike: Alike) -> bool:
        """Wait until all ranks of this node have posted headers of plain arrays; return whether the digests are equal.

        Args:
            proposal: The call, whose header this rank has posted.
            alike: Returns whether calls of these digests and sizes go together, though they are not all equal.

        Raises:
            MismatchError: Other ranks pass other things; on the ranks of this node, and on all others that listen.
            Exception: A rank passed an ``error``, as in `steps`.
        """
        run(self._plain_on_node(proposal, alike))
        return proposal.verdict == status.AGREED

    def plain_steps(self, proposal: Proposal, alike: Alike) -> Generator[Any, None, bool]:
        """Do what `plain` does for the ranks of all nodes, in steps (`sfb.runtime.steps`)."""
        yield from self._plain_on_node(proposal, alike)
        yield from self._across(proposal)
        if proposal.verdict == status.AGREED:
            return True
        yield ALONE  # the gathering blocks, and other ranks may have to finish older calls first
        passed = self._gather(proposal, True)
        if proposal.verdict != status.DIFFERENT:
            headers = np.array([(digest, size) for _, digest, size in passed], np.int64)
            if alike(headers[:, 0], headers[:, 1]):
                return False
        self._raise_passed(proposal, True, passed)
        return False

    def _plain_on_node(self, proposal: Proposal, alike: Alike) -> Iterator[Any]:
        """Wait for the headers of this node; raise on its ranks if they do not go together."""
        if proposal.verdict == status.PENDING:
            yield from self._on_node(proposal)
        wrong = proposal.verdict == status.DIFFERENT or proposal.error is not None
        if not wrong and proposal.verdict != status.AGREED:
            headers = self._board.headers(proposal.number)
            wrong = not alike(headers[:, header.DIGEST], headers[:, header.SIZE])
        if wrong:
            yield from self._fail(proposal)

    def propose(self, proposal: Proposal) -> None:
        """Number a call and `post` it."""
        proposal.number = self.begin()
        self.post(proposal)

    def post(self, proposal: Proposal) -> None:
        """Post the header of a call; if the call blocks, look for a while for the headers of the others."""
        if proposal.error is not None:
            proposal.digest = header.FAILED
        wait = proposal.blocking
        proposal.verdict = self._board.meet(proposal.number, proposal.digest, proposal.size, wait=wait)

    def resume(self, proposal: Proposal, messages: tuple[np.ndarray, list[int]]) -> None:
        """Post the header of an eager exchange, and let `steps` go on from the messages that it has exchanged."""
        proposal.messages = messages
        proposal.verdict = self._board.meet(proposal.number, proposal.digest, proposal.size, wait=False)

    def steps(self, proposal: Proposal) -> Iterator[Any]:
        """Wait in steps (`sfb.runtime.steps`) until the ranks agree.

        Raises:
            MismatchError: Digests differ; every rank raises, naming all of them.
            DamagedMessageError: A message has arrived damaged; not on every rank.
            Exception: A rank passed an ``error``; every rank raises one of its type, naming the rank.
        """
        board = self._board
        if proposal.verdict == status.PENDING:
            yield from self._on_node(proposal)
        if len(self._members) == 1:
            if proposal.verdict == status.DIFFERENT or proposal.digest == header.FAILED:
                yield from self._raise(proposal, True)
            if proposal.verdict == status.UNEVEN:
                proposal.counts = board.headers(proposal.number)[:, header.SIZE].copy()
            return
        digests = board.headers(proposal.number)[:, header.DIGEST]
        if proposal.verdict == status.DIFFERENT and (digests <= PLAIN).any():
            yield from self._fail(proposal)
        yield from self._across(proposal)
        if proposal.verdict == status.DIFFERENT:
            yield from self._raise(proposal, True)
        if proposal.verdict == status.UNEVEN and proposal.counts is None:
            proposal.counts = yield from self._sizes(proposal)

    def _across(self, proposal: Proposal) -> Iterator[Any]:
        """Set the verdict to that on the headers of all nodes."""
        board = self._board
        if board.me == 0:
            verdict = yield from self._between_nodes(proposal)
            assert verdict is not None  # the leader waits as long as it takes
            proposal.verdict = verdict
        else:
            yield from self._await_announcement(proposal)
            proposal.verdict = self._announced(proposal)[0]

    def _fail(self, proposal: Proposal) -> Iterator[Any]:
        """Raise on all ranks, or on this node alone if the others pass plain arrays and do not listen."""
        everybody = True
        if len(self._members) > 1:
            if self._board.me == 0:
                everybody = (yield from self._between_nodes(proposal, _PLAIN_PATIENCE)) is not None
            else:
                yield from self._await_announcement(proposal)
                everybody = bool(self._announced(proposal)[1])
        yield from self._raise(proposal, everybody)

    def _on_node(self, proposal: Proposal) -> Iterator[Any]:
        """Wait until every rank of the node has posted its header."""
        board, number = self._board, proposal.number

        def arrived(wait: bool) -> bool:
            proposal.verdict = board.look(number, wait=wait)
            return proposal.verdict != status.PENDING

        event = Event(board, arrived, lambda: board.missing(number, self._sync.ARRIVED), proposal.call)
        if not event.Test():
            yield event

    def _await_announcement(self, proposal: Proposal) -> Iterator[Any]:
        """Wait until the leader has announced the verdict; the leader warns of ranks of other nodes."""
        board, number = self._board, proposal.number
        missing = lambda: board.missing(number, self._sync.ARRIVED)  # noqa: E731
        event = Event(board, lambda wait: board.was_announced(number, wait=wait), missing, proposal.call)
        if not event.Test():
            yield event

    def _announced(self, proposal: Proposal) -> list[int]:
        """Return the words that the leader has announced; raise if they say that a message was damaged."""
        words = self._board.announced(proposal.number)
        if words[0] == status.DAMAGED:
            raise self.rounds.damage(words[2])
        return words

    def _sizes(self, proposal: Proposal) -> Generator[Any, None, np.ndarray]:
        """Gather the sizes of all ranks, in steps."""
        size = np.array([proposal.size], np.int64)
        table = np.empty((self._world.size, 1 + SEAL_WORDS), np.int64)
        mine = np.empty(1 + SEAL_WORDS, np.int64)
        mine[0] = size[0]
        seal(mine[1:], header.SIZES, proposal.number, size, checked=self._checked)
        yield self._world.Iallgather(mine, table)
        for rank, row in enumerate(table):
            wrong = fault(row[1:], header.SIZES, proposal.number, row[:1], checked=self._checked)
            if wrong:
                raise DamagedMessageError(f"{proposal.call}: the message of rank {rank} {wrong}")
        return table[:, 0].copy()

    def _between_nodes(self, proposal: Proposal, patience: float | None = None) -> Generator[Any, None, int | None]:
        """Gather the headers of all nodes, announce the verdict and return it; for the leader.

        Args:
            proposal: The call.
            patience: Seconds after which to give up and return None, where the ranks of this node disagree.
        """
        board, number = self._board, proposal.number
        if proposal.messages is not None:
            words, starts = proposal.messages
        else:
            # Several nonblocking calls may be under way.
            words = self._words if proposal.blocking else np.empty(self._words.size, np.int64)
            words[: header.WORDS * board.ranks] = board.headers(number).reshape(-1)
            words[self.head + header.KIND] = words[self.head + header.NBYTES] = 0
            try:
                starts = yield from self.rounds.gather(proposal.call, number, words, self.head, patience)
            except DamagedMessageError as error:
                board.announce(number, (status.DAMAGED, 1, error.note))
                raise
        if len(starts) <= len(self._members):
            board.announce(number, (status.DIFFERENT, 0, 0))
            return None
        sizes = np.empty(self._world.size, np.int64)
        verdict = self._sync.judge(words, self._ranks, self.head, sizes)
        if board.ranks > 1:
            board.announce(number, (verdict, 1, 0))
        if verdict == status.UNEVEN and self._largest == 1:  # a node is a rank
            proposal.counts = np.empty_like(sizes)
            proposal.counts[self.rounds.order] = sizes
        return verdict

    @staticmethod
    def digest(call: str, signature: object) -> int:
        """Return a number that stands for a call and what has to be equal on all ranks."""
        bits = int.from_bytes(blake2b(repr((call, signature)).encode(), digest_size=8).digest(), "big")
        return (bits >> 2) + 1

    def _raise(self, proposal: Proposal, everybody: bool) -> Iterator[Any]:
        """Gather what the ranks passed, of the world or of this node, and raise."""
        yield ALONE  # the gathering blocks, and other ranks may have to finish older calls first
        self._raise_passed(proposal, everybody, self._gather(proposal, everybody))

    def _gather(self, proposal: Proposal, everybody: bool) -> list[tuple[Report, int, int]]:
        """Return the report, the digest and the size of each rank, of the world or of this node; collective."""
        error = proposal.error
        mine = report(error) if error is not None else ("", f"{proposal.call} with {proposal.describe()}")
        item = mine, proposal.digest, proposal.size
        return self._world.allgather(item) if everybody else self._board.gather(item)

    def _raise_passed(self, proposal: Proposal, everybody: bool, passed: list[tuple[Report, int, int]]) -> None:
        """Raise the error on which all ranks that have gathered ``passed`` decide."""
        error, reports = proposal.error, [said for said, _, _ in passed]
        if proposal.own_error and error is not None and len(set(reports)) == 1:
            raise error
        members = range(self._world.size) if everybody else self._board.members
        raise_reported(proposal.call, list(zip(members, reports, strict=True)), error)


def compare(comm: MPI.Intracomm, call: str, text: str = "", error: Exception | None = None) -> None:
    """Raise on every rank if one has an error or if their texts differ; collective, for rare calls.

    Raises:
        MismatchError: The texts differ.
        Exception: A rank passed an ``error``; every rank raises one of its type, naming the rank.
    """
    if isinstance(error, RankFailedError):  # which all ranks raise by themselves; no collective would end
        raise error
    reports = comm.allgather(("", text) if error is None else report(error))
    if any(said != ("", text) for said in reports):
        raise_reported(call, list(enumerate(reports)), error)


@contextmanager
def on_all_ranks(comm: MPI.Intracomm, call: str) -> Iterator[None]:
    """Raise on every rank what the block of a ``with`` statement raises on one; collective.

    Args:
        comm: The ranks that run the block.
        call: The user's call, for messages.

    Raises:
        Exception: As `compare` does.
    """
    error: Exception | None = None
    try:
        yield
    except Exception as caught:  # the other ranks wait to hear of it
        error = caught
    compare(comm, call, error=error)
