"""Exchanges within a node as single calls, the ranks of which live in one process."""

import numpy as np
import pytest
from one_process import run

from sfb.kernels import fused, header, rules, scratch_for, status, sync

ROWS, COLUMNS, DIGEST = 13, 21, 77
KINDS = pytest.mark.parametrize("kind", ["node", "dense"])


class Node:
    """Ranks of a node that exchange factors into one array, or into one each.

    Integers keep sums exact.
    """

    def __init__(self, kind, ranks, shared, rng, samples=3, rule=None, pieces=3):
        self.ranks = ranks
        self.rule = rule or rules.assign()
        self.kernel = getattr(fused, kind)
        self.board = np.zeros(header.slot(ranks + 1, 0), np.int64)
        self.u = rng.integers(-3, 4, (ranks, samples, ROWS)).astype(np.float64)
        self.v = rng.integers(-3, 4, (ranks, samples, COLUMNS)).astype(np.float64)
        one = np.zeros((ROWS, COLUMNS))
        self.w = [one if shared else one.copy() for _ in range(ranks)]
        high = -(-ROWS // pieces)
        depth = ranks * samples
        self.memory = [np.empty((depth, ROWS)), np.empty((depth, COLUMNS)), np.empty((2 * ranks, high * COLUMNS))]
        self.bound = []
        for rank in range(ranks):
            start = ranks, rank, 10, samples, shared, self.board
            rows = (ROWS * rank // ranks, ROWS * (rank + 1) // ranks) if shared else (0, ROWS)
            if kind == "node":
                bound = fused.bind_node(*start, *self.memory[:2], samples * rank, *rows)
            else:
                bound = fused.bind_dense(*start, self.memory[2], high, -(-ROWS // high))
            self.bound.append(bound)

    def call(self, rank, number, *, digest=DIGEST, user=0, u=None):
        """Return what calls a rank's kernel."""
        w, rule = self.w[rank], self.rule
        arrays = self.u[rank] if u is None else u, self.v[rank], w, w, w
        numbers = rule.kind, *rule.linear, rule.numbers(w.dtype), 1 + rule.states
        return lambda: self.kernel(
            self.bound[rank], 0, number, user, digest, *arrays, *numbers, scratch_for(self.ranks * len(self.u[0]), w)
        )

    def exchange(self, number, **options):
        """Let all ranks take part in a call; return their codes."""
        return run([self.call(rank, number, **options) for rank in range(self.ranks)])

    @property
    def total(self):
        return np.einsum("rsk,rsd->kd", self.u, self.v)


@KINDS
@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("shared", [False, True], ids=["private", "shared"])
def test_the_sum_of_all_ranks(kind, ranks, shared, rng):
    node = Node(kind, ranks, shared, rng)
    for number in (1, 2, 3):  # each call waits for the memory that the one before used
        assert node.exchange(number, user=number - 1) == [status.DONE] * ranks
        for w in node.w:
            np.testing.assert_array_equal(w, node.total)
        node.u += 1


@KINDS
def test_a_rule_takes_the_sum(kind, rng):
    node = Node(kind, 2, True, rng, rule=rules.sgd(0.5))
    node.exchange(1)
    node.exchange(2, user=1)
    np.testing.assert_array_equal(node.w[0], -node.total)


@KINDS
def test_ranks_that_have_agreed_need_no_header(kind, rng):
    node = Node(kind, 3, False, rng)
    assert node.exchange(1, digest=0) == [status.DONE] * 3
    np.testing.assert_array_equal(node.w[2], node.total)


@KINDS
def test_a_rank_that_has_agreed_otherwise_meets_ranks_that_post_their_data_first(kind, rng):
    node = Node(kind, 2, False, rng)
    calls = [node.call(0, 1), node.call(1, 1, digest=0)]
    sync.meet(node.board, 2, 1, 1, DIGEST, 3, 0, 0, 10)  # the other rank's header, which brings no data
    assert run(calls) == [status.DONE] * 2
    for w in node.w:
        np.testing.assert_array_equal(w, node.total)


@KINDS
@pytest.mark.parametrize(("digest", "size", "verdict"), [(DIGEST + 1, 3, status.DIFFERENT), (DIGEST, 4, status.UNEVEN)])
def test_ranks_that_do_not_agree_change_nothing(kind, rng, digest, size, verdict):
    node = Node(kind, 2, False, rng)
    call = node.call(0, 1)
    assert call() == status.PENDING
    sync.meet(node.board, 2, 1, 1, digest, size, 0, 0, 10)
    assert call() == verdict
    assert not node.w[0].any()
    # The exchange begins anew in the next call.
    assert node.exchange(2) == [status.DONE] * 2


@KINDS
def test_arrays_that_do_not_fit_post_nothing(kind, rng):
    node = Node(kind, 2, False, rng)
    for u in (np.ones((4, ROWS)), np.ones((3, ROWS + 1))):
        assert node.call(0, 1, u=u)() == status.UNFIT
    w = node.w[0]
    w[:] = 1
    assert node.call(0, 1, u=w[:3, :ROWS].copy())() == status.PENDING  # fits, and posts
    overlapping = Node(kind, 2, False, rng)
    overlapping.u = np.ones((2, 3, ROWS))
    overlapping.w = [np.ones((ROWS, COLUMNS))] * 2
    shared_memory = overlapping.w[0].reshape(-1)[: 3 * ROWS].reshape(3, ROWS)
    assert overlapping.call(0, 1, u=shared_memory)() == status.UNFIT
    assert not overlapping.board.any()


@KINDS
def test_the_memory_is_written_only_once_the_call_before_has_finished(kind, rng):
    node = Node(kind, 2, False, rng)
    for memory in node.memory:
        memory[:] = 7
    call = node.call(0, 5, user=4)
    sync.reach(node.board, 0, 4, sync.LAST)
    assert call() == status.PENDING
    assert all((memory == 7).all() for memory in node.memory)
    assert fused.phase(node.bound[0]) == sync.LAST
    sync.reach(node.board, 1, 4, sync.LAST)
    assert call() == status.PENDING
    assert any((memory != 7).any() for memory in node.memory)
    assert fused.phase(node.bound[0]) == sync.ARRIVED


def test_work_and_waiting_are_timed(rng):
    node = Node("node", 2, False, rng)
    node.exchange(1)
    for bound in node.bound:
        assert bound[fused.WORKED] > 0
        assert bound[fused.WAITED] > 0
