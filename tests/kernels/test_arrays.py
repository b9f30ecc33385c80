"""Collectives of plain arrays, by the ranks of a node, all of which this process plays in turn."""

from threading import Barrier, Thread

import numpy as np
import pytest

from sfb.kernels import arrays, header, status
from sfb.kernels.sync import ARRIVED

OPS = {arrays.SUM: np.add, arrays.PROD: np.multiply, arrays.MAX: np.maximum, arrays.MIN: np.minimum}
# Small, of one chunk, and of several.
COUNTS = [0, 1, 2048, 2049, 300_007]


class Node:
    """The memory that ranks share, and the state that each keeps."""

    def __init__(self, ranks):
        self.ranks = ranks
        self.board = np.zeros((ranks + 1) * header.RING * header.BOARD_WORDS, np.int64)
        self.window = np.zeros(arrays.window_bytes(ranks), np.uint8)
        self.states = [np.zeros(arrays.state_words(ranks), np.int64) for _ in range(ranks)]
        self.calls = 0

    def run(self, kernel, arguments, digests=None):
        """Call a kernel for all ranks in turn, each with arguments of its own, until none waits; return their codes."""
        self.calls += 1
        codes = [status.PENDING] * self.ranks
        while status.PENDING in codes:
            before = [*codes, *(int(state[0]) for state in self.states)]
            for me in range(self.ranks):
                if codes[me] == status.PENDING:
                    start = self.board, (self.ranks, me, 0, 0), self.calls, digests[me] if digests else -1
                    codes[me] = kernel(*start, self.states[me], *arguments[me])
            assert before != [*codes, *(int(state[0]) for state in self.states)], "all wait for each other"
        return codes


def drawn(rng, ranks, count, dtype):
    """Return numbers for each rank, of which all sums and products are exact."""
    return [rng.integers(-3, 4, count).astype(dtype) for _ in range(ranks)]


def reduced(op, terms):
    total = terms[0].copy()
    for term in terms[1:]:
        total = OPS[op](total, term)
    return total


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", ["f4", "f8", "i4", "i8"])
def test_allreduce(ranks, op, dtype, rng):
    node = Node(ranks)
    for count in COUNTS:
        given = drawn(rng, ranks, count, dtype)
        expected = reduced(op, given)
        taken = [np.full(count, 99, dtype) for _ in given]
        codes = node.run(arrays.allreduce, [(node.window, op, *pair) for pair in zip(given, taken, strict=True)])
        assert codes == [status.DONE] * ranks
        for result in taken:
            np.testing.assert_array_equal(result, expected)
        node.run(arrays.allreduce, [(node.window, op, array, array) for array in given])
        for result in given:
            np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("dtype", ["f4", "i8"])
def test_sums_are_formed_in_the_order_of_ranks(dtype, rng):
    node = Node(3)
    given = [rng.standard_normal(50_000).astype(dtype) for _ in range(3)]
    taken = [np.empty_like(part) for part in given]
    node.run(arrays.allreduce, [(node.window, arrays.SUM, *pair) for pair in zip(given, taken, strict=True)])
    np.testing.assert_array_equal(taken, [given[0] + given[1] + given[2]] * 3)


@pytest.mark.parametrize("own_results", [False, True])
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(("kind", "dtype"), [*enumerate(["f4", "f8", "i4", "i8"])])
def test_allreduce_where_arrays_lie(own_results, op, kind, dtype, rng):
    """All ranks pass one result, or each its own."""
    ranks, node = 3, Node(3)
    for count in (2049, 100_003):
        shared = np.zeros((2 * ranks, count), dtype)
        shared[:ranks] = drawn(rng, ranks, count, dtype)
        expected, memory = reduced(op, shared[:ranks]), shared.view(np.uint8).ravel()
        nbytes = shared[0].nbytes
        words = node.window.view(np.int64)
        where = [(me * nbytes, (ranks + me * own_results) * nbytes, nbytes) for me in range(ranks)]
        arguments = [(words, kind, op, its, memory, memory) for its in where]
        assert node.run(arrays.allreduce_shared, arguments) == [status.DONE] * ranks
        for result in shared[ranks : 2 * ranks if own_results else ranks + 1]:
            np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("dtype", ["f4", "f8", "i4", "i8"])
def test_reduce_scatter_and_allgather(dtype, rng):
    ranks, node = 3, Node(3)
    for count in (1, 100, 700_001):
        part = -(-count // ranks)
        given, taken = drawn(rng, ranks, count, dtype), [np.full(count, 99, dtype) for _ in range(ranks)]
        mine = [array[me * part : (me + 1) * part] for me, array in enumerate(taken)]
        expected = reduced(arrays.SUM, given)
        arguments = [(ARRIVED, node.window, arrays.SUM, *pair) for pair in zip(given, mine, strict=True)]
        assert node.run(arrays.reduce_scatter, arguments) == [status.DONE] * ranks
        for me in range(ranks):
            np.testing.assert_array_equal(mine[me], expected[me * part : (me + 1) * part])
        in_place, copied = taken, [np.empty_like(array) for array in taken]
        for whole in (copied, in_place):
            arguments = [(ARRIVED, node.window, *pair) for pair in zip(mine, whole, strict=True)]
            assert node.run(arrays.allgather, arguments) == [status.DONE] * ranks
            for array in whole:
                np.testing.assert_array_equal(array, expected)


@pytest.mark.parametrize(
    ("digests", "counts", "code"),
    [([-1, -2], [5, 5], status.MIXED), ([-1, 7], [5, 5], status.DIFFERENT), ([-1, -1], [5, 6], status.UNEVEN)],
)
def test_nothing_is_reduced_unless_the_ranks_agree(digests, counts, code):
    node = Node(2)
    given, taken = [np.ones(count) for count in counts], [np.zeros(count) for count in counts]
    codes = node.run(
        arrays.allreduce, [(node.window, arrays.SUM, *pair) for pair in zip(given, taken, strict=True)], digests
    )
    assert codes == [code, code]
    assert not any(array.any() for array in taken)
    taken = given
    codes = node.run(arrays.allreduce, [(node.window, arrays.SUM, np.ones(3), array[:3]) for array in taken])
    assert codes == [status.DONE] * 2


def test_arrays_that_do_not_fit_are_refused_before_anybody_is_told():
    node, x = Node(2), np.ones(10)
    for send, recv in ((x, np.ones(9)), (x[:8], x[1:9])):
        code = arrays.allreduce(node.board, (2, 0, 0, 0), 1, -1, node.states[0], node.window, arrays.SUM, send, recv)
        assert code == status.UNFIT
    assert not node.board.any()


@pytest.mark.parametrize("me", [0, 1])
def test_parts_that_do_not_fit_are_refused_before_anybody_is_told(me):
    node, x = Node(2), np.ones(30)
    begin = node.board, (2, me, 0, 0), 1, -1, node.states[me], ARRIVED, node.window
    other = 5 * (1 - me)
    for part in (np.ones(4), np.ones(6), x[1:6], x[7:12], x[other : other + 5]):
        assert arrays.reduce_scatter(*begin, arrays.SUM, x[:10], part) == status.UNFIT
        assert arrays.allgather(*begin, part, x[:10]) == status.UNFIT
    assert arrays.allgather(*begin, x[1:11], x[:10]) == status.UNFIT
    assert not node.board.any()


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
@pytest.mark.parametrize("dtype", ["f4", "i8"])
def test_kernels_between_threads(ranks, dtype, rng):
    """All ranks of a node as threads of this process: more of them than tests have processes."""
    words = np.zeros((ranks + 1) * header.RING * header.BOARD_WORDS, np.int64)
    window = np.zeros(arrays.window_bytes(ranks), np.uint8)
    failures, start = [], Barrier(ranks)
    counts = [int(count) for count in rng.choice([1, 50, 4096, 4097, 40_000, 200_001], 30)]
    given = [[rng.integers(-9, 9, count).astype(dtype) for count in counts] for _ in range(ranks)]
    totals = [sum(of_rank[i] for of_rank in given) for i in range(len(counts))]

    def rank(me):
        state = np.zeros(arrays.state_words(ranks), np.int64)
        start.wait()
        for i, (mine, total) in enumerate(zip(given[me], totals, strict=True)):
            got, verdict = np.empty_like(mine), status.PENDING
            while verdict == status.PENDING:
                call = words, (ranks, me, 100, 10), i + 1, -1, state
                verdict = arrays.allreduce(*call, window, arrays.SUM, mine, got)
            if verdict != status.DONE or (got != total).any():
                failures.append((me, i, verdict))
                return

    threads = [Thread(target=rank, args=(me,)) for me in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    assert not any(thread.is_alive() for thread in threads)
