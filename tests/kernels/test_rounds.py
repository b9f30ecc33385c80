"""Rounds of messages between nodes, whose leaders live in one process."""

import numpy as np
import pytest
from one_process import FakeMPI, run

from sfb.kernels import eager, header, rounds, rules, scratch_for, status
from sfb.runtime.rounds import order, schedule

HEAD, TAG, DIGEST = header.head_words(1), 5, 77


def write_head(words, digest=DIGEST, size=2, kind=0, nbytes=0):
    words[[header.DIGEST, header.SIZE, header.NOTE]] = digest, size, 0
    words[HEAD + header.KIND], words[HEAD + header.NBYTES] = kind, nbytes


def plans(nodes):
    return [schedule([[node] for node in range(nodes)], node) for node in range(nodes)]


@pytest.mark.parametrize("nodes", [1, 2, 3, 4, 5, 7, 8])
def test_messages_of_any_length_reach_all_nodes(nodes):
    mpi, calls, results = FakeMPI(), [], []
    for node, plan in enumerate(plans(nodes)):
        words, starts = np.full(40 * nodes, -1, np.int64), np.zeros(nodes + 1, np.int64)
        write_head(words, size=node, nbytes=8 * node)
        words[HEAD : HEAD + node] = 1000 + node
        starts[1] = HEAD + node
        state = np.zeros(rounds.STATE, np.int64)
        arguments = mpi.functions(node), plan, state, 0, TAG, HEAD, words, starts
        calls.append(lambda arguments=arguments: rounds.gather(*arguments))
        results.append((words, starts, state))
    assert run(calls) == [status.DONE] * nodes
    for home, (words, starts, state) in enumerate(results):
        assert state[rounds.ALIKE] == (nodes == 1)
        for position, node in enumerate(order(nodes, home)):
            message = words[starts[position] : starts[position + 1]]
            assert message[header.SIZE] == node
            assert message[HEAD:].tolist() == [1000 + node] * node


@pytest.mark.parametrize("nodes", [2, 4, 8])
@pytest.mark.parametrize("size", [1, 13, 4096], ids=["one", "few", "halved"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_values_are_summed_to_the_same_bits(nodes, size, dtype, rng):
    mpi, calls, given, states = FakeMPI(), [], [], []
    for node, plan in enumerate(plans(nodes)):
        room = nodes * HEAD + 8192
        words, received = np.zeros((2, room), np.int64)
        write_head(words)
        values = rng.standard_normal((size, 1)).astype(dtype)
        given.append(values.copy())
        state = np.zeros(rounds.STATE, np.int64)
        arguments = mpi.functions(node), plan, state, 0, TAG, HEAD, words, received, values
        calls.append((lambda arguments=arguments: rounds.sum_values(*arguments), values))
        states.append(state)
    assert run([call for call, _ in calls]) == [status.DONE] * nodes
    assert all(state[rounds.ALIKE] for state in states)
    assert len({values.tobytes() for _, values in calls}) == 1
    bound = nodes * np.finfo(dtype).eps * np.abs(given).sum(axis=0)
    assert (np.abs(calls[0][1] - np.sum(given, axis=0, dtype=np.float64)) <= bound).all()


class Exchange:
    """Nodes of one rank that exchange factors eagerly into an array each; integers keep sums exact.

    ``bounds`` are those of unlike S; ``counts`` then has S of each node, of ``samples`` at most.
    """

    def __init__(self, payload, nodes, rng, shape=(4, 3), samples=2, bounds=None):
        (rows, columns), dtype = shape, np.float32
        self.counts = [samples] * nodes
        self.mpi, self.bound, self.arrays, self.state = FakeMPI(), [], [], []
        self.u = rng.integers(-3, 4, (nodes, samples, rows)).astype(dtype)
        self.v = rng.integers(-3, 4, (nodes, samples, columns)).astype(dtype)
        self.w = [np.zeros(shape, dtype) for _ in range(nodes)]
        nbytes = samples * (rows + columns) * 4 if payload == eager.FACTORS else rows * columns * 4
        for node, plan in enumerate(plans(nodes)):
            words, more = np.zeros((2, nodes * (HEAD + -(-nbytes // 8)) + 1024), np.int64)
            if payload == eager.FACTORS:
                one, two = np.empty((nodes * samples, rows), dtype), np.empty((nodes * samples, columns), dtype)
            else:
                one = two = np.empty(shape, dtype)
            functions = self.mpi.functions(node)
            kept = functions, plan, words, more, one, two
            self.arrays.append(kept)
            self.bound.append(eager.bind(payload, HEAD, samples if bounds is None else bounds, nbytes, *kept))
            self.state.append(np.zeros(rounds.STATE, np.int64))

    def call(self, node, tag=TAG, digest=DIGEST, rule=None, u=None):
        rule, w = rule or rules.assign(), self.w[node]
        samples = self.counts[node]
        arrays = self.u[node, :samples] if u is None else u, self.v[node, :samples], w, w, w
        numbers = rule.kind, *rule.linear, rule.numbers(w.dtype), 1 + rule.states
        memory = scratch_for(100, w)
        return lambda: eager.exchange(self.bound[node], self.state[node], 0, tag, digest, *arrays, *numbers, memory)

    @property
    def total(self):
        return sum(u[:n].T @ v[:n] for u, v, n in zip(self.u, self.v, self.counts, strict=True))


PAYLOADS = [
    (eager.SUM, 2),
    (eager.SUM, 4),
    (eager.PRODUCTS, 3),
    (eager.PRODUCTS, 4),
    (eager.FACTORS, 3),
    (eager.FACTORS, 4),
]


@pytest.mark.parametrize(("payload", "nodes"), PAYLOADS)
def test_eager_exchanges_take_the_sum_in_the_messages_of_the_agreement(payload, nodes, rng):
    exchange = Exchange(payload, nodes, rng)
    for tag in (5, 6):
        assert run([exchange.call(node, tag) for node in range(nodes)]) == [status.DONE] * nodes
        for w in exchange.w:
            np.testing.assert_array_equal(w, exchange.total)
        exchange.u += 1


@pytest.mark.parametrize(("payload", "nodes"), [each for each in PAYLOADS if each[0] != eager.FACTORS])
def test_products_of_nodes_with_unlike_samples(payload, nodes, rng):
    exchange = Exchange(payload, nodes, rng, samples=9, bounds=(2 * nodes, 3 * nodes, 4, 7))
    served = {
        2: [([5, 0], True), ([4, 2], True), ([3, 3], False), ([7, 0], False), ([3, 2], False), ([3, 0], False)],
        3: [([5, 2, 0], True), ([7, 1, 1], True), ([3, 3, 3], False), ([8, 0, 0], False), ([4, 4, 2], False)],
        4: [
            ([0, 6, 2, 4], True),
            ([4, 3, 1, 0], True),
            ([3, 3, 3, 3], False),
            ([3, 3, 3, 2], False),
            ([8, 0, 0, 0], False),
        ],
    }[nodes]
    for tag, (counts, fits) in enumerate(served):
        exchange.counts = counts
        for w in exchange.w:
            w[:] = 77
        code = status.DONE if fits else status.APART
        assert run([exchange.call(node, tag) for node in range(nodes)]) == [code] * nodes, counts
        for w in exchange.w:
            np.testing.assert_array_equal(w, exchange.total if fits else np.full_like(w, 77))
        for (_, _, words, starts, *_), node in zip(exchange.arrays, range(nodes), strict=True):
            begin = [HEAD * position if payload == eager.SUM else starts[position] for position in range(nodes)]
            assert sorted(words[np.array(begin) + header.SIZE]) == sorted(counts)
            assert words[header.SIZE] == counts[node]


def test_an_eager_exchange_lets_a_rule_take_the_sum(rng):
    exchange = Exchange(eager.FACTORS, 2, rng)
    for tag in (1, 2):
        run([exchange.call(node, tag, rule=rules.sgd(0.5)) for node in range(2)])
    np.testing.assert_array_equal(exchange.w[0], -exchange.total)


@pytest.mark.parametrize(("payload", "nodes"), PAYLOADS)
def test_eager_exchanges_with_different_digests_change_nothing(payload, nodes, rng):
    exchange = Exchange(payload, nodes, rng)
    calls = [exchange.call(node, digest=DIGEST + (node == nodes - 1)) for node in range(nodes)]
    assert run(calls) == [status.APART] * nodes
    assert not any(w.any() for w in exchange.w)
    for _, _, words, *_ in exchange.arrays:
        assert words[header.SIZE] == 2
    # The next exchange begins anew.
    assert run([exchange.call(node, TAG + 1) for node in range(nodes)]) == [status.DONE] * nodes


@pytest.mark.parametrize("payload", [eager.SUM, eager.PRODUCTS, eager.FACTORS])
def test_a_node_that_only_sends_its_header(payload, rng):
    """A rank to which the receiver is new gathers headers in the same rounds."""
    exchange = Exchange(payload, 2, rng)
    words, starts = np.zeros(1024, np.int64), np.zeros(3, np.int64)
    write_head(words)
    starts[1] = HEAD
    state = np.zeros(rounds.STATE, np.int64)
    arguments = exchange.mpi.functions(1), plans(2)[1], state, 0, TAG, HEAD, words, starts
    codes = run([exchange.call(0), lambda: rounds.gather(*arguments)])
    assert codes == [status.APART, status.DONE]
    assert not exchange.w[0].any()
    assert words[starts[1] + header.DIGEST] == DIGEST


def test_arrays_that_do_not_fit_send_nothing(rng):
    exchange = Exchange(eager.FACTORS, 2, rng)
    assert exchange.call(0, u=np.ones((3, 4), np.float32))() == status.UNFIT
    assert exchange.call(0, u=np.ones((2, 5), np.float32))() == status.UNFIT
    assert not exchange.arrays[0][2].any()
