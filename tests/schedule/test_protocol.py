"""Programs on grids of ranks, against one process that does the same by NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from oracle import assert_same_bits

from sfb import MismatchError
from sfb.schedule import Layout, Priority, Program, Random, RoundRobin, StaticBlocks, Trace, run

pytestmark = pytest.mark.mpi

SAMPLES, VARIABLES, L1 = 40, 17, 3.0


class Lasso(Program):
    """The lasso, for any division of samples and variables."""

    def __init__(self, x, y, layout):
        self.x, self.r, self.first = (
            x[layout.samples, layout.variables],
            y[layout.samples].copy(),
            layout.variables.start,
        )
        self.squares = (x[:, layout.variables] ** 2).sum(axis=0)
        self.beta = np.zeros(self.x.shape[1])
        self.effects = len(self.r)

    def push(self, own):
        return self.x[:, own - self.first].T @ self.r

    def pull(self, own, total):
        mine = own - self.first
        z = total + self.squares[mine] * self.beta[mine]
        new = np.sign(z) * np.maximum(np.abs(z) - L1, 0) / self.squares[mine]
        change, self.beta[mine] = new - self.beta[mine], new
        return change, -self.x[:, mine] @ change

    def commit(self, effect):
        self.r += effect


def problem():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(SAMPLES, VARIABLES))
    x[:, 1] = x[:, 0] + 0.1 * rng.normal(size=SAMPLES)
    return x, x[:, :4].sum(axis=1) + rng.normal(size=SAMPLES)


def correlation(chosen):
    x, _ = problem()
    return np.corrcoef(x[:, chosen].T).reshape(len(chosen), len(chosen))


SCHEDULES = {
    "priority": lambda: Priority(VARIABLES, 5, correlation, threshold=0.3, seed=1),
    "random": lambda: Random(VARIABLES, 3, seed=1),
    "round robin": lambda: RoundRobin(VARIABLES, 4),
    "blocks": lambda: StaticBlocks([[0, 5, 9], np.setdiff1d(np.arange(VARIABLES), [0, 5, 9, 2]), [2]]),
}


def reference(schedule, rounds):
    """Return the coefficients, and what was selected, by one process in float64."""
    x, y = problem()
    beta, squares, log = np.zeros(VARIABLES), (x**2).sum(axis=0), []
    for _ in range(rounds):
        chosen = schedule.select()
        z = x[:, chosen].T @ (y - x @ beta) + squares[chosen] * beta[chosen]
        new = np.sign(z) * np.maximum(np.abs(z) - L1, 0) / squares[chosen]
        schedule.feedback(chosen, new - beta[chosen])
        beta[chosen] = new
        log.append(chosen)
    return beta, log


def grids(world):
    return [shards for shards in range(1, world.size + 1) if world.size % shards == 0]


@pytest.mark.parametrize("name", SCHEDULES)
def test_any_mix_of_shards_and_blocks_gives_the_same(world, name):
    x, y = problem()
    expected, log = reference(SCHEDULES[name](), 12)
    for shards in grids(world):
        with Layout(world, samples=SAMPLES, variables=VARIABLES, shards=shards) as layout:
            program, rounds = Lasso(x, y, layout), []
            done = run(program, SCHEDULES[name](), 12, layout, until=rounds.append)
            assert done.rounds == 12
            assert done.updates == sum(map(len, log))
            for each, chosen in zip(rounds, log, strict=True):
                np.testing.assert_array_equal(each.selected, chosen)
                assert_same_bits(world, each.changes)
            found = np.concatenate([beta for _, beta in sorted(world.allgather((layout.block, program.beta)),
                                                               key=lambda pair: pair[0])][::shards])  # fmt: skip
            np.testing.assert_allclose(found, expected, atol=1e-10)


def test_a_layout_divides_all_samples_and_variables(world):
    for shards in grids(world):
        with Layout(world, samples=SAMPLES, variables=VARIABLES, shards=shards) as layout:
            cover = np.zeros((SAMPLES, VARIABLES), int)
            cover[layout.samples, layout.variables] = 1
            assert (sum(world.allgather(cover)) == 1).all()
            assert (layout.owners[layout.variables] == layout.block).all()
            costs = np.ones(2 * world.size)
            costs[0] = 100.0
            layout.divide(samples=3, variables=len(costs), costs=costs)
            if world.size > shards:
                assert (np.bincount(layout.owners)[0], layout.owners[0]) == (1, 0)


def test_more_ranks_than_variables(world):
    with Layout(world, samples=SAMPLES, variables=1) as layout:
        x, y = problem()
        program = Lasso(x[:, :1], y, layout)
        assert run(program, RoundRobin(1, 1), 2, layout).updates == 2


def test_it_stops_when_asked(world):
    x, y = problem()
    with Layout(world, samples=SAMPLES, variables=VARIABLES) as layout:
        done = run(Lasso(x, y, layout), RoundRobin(VARIABLES, 1), 100, layout, until=lambda each: each.number == 6)
    assert done.rounds == 7


def test_a_trace(world):
    x, y = problem()
    trace = Trace()
    with Layout(world, samples=SAMPLES, variables=VARIABLES) as layout:
        done = run(Lasso(x, y, layout), RoundRobin(VARIABLES, 3), 5, layout, trace=trace)
    seconds = trace.seconds()
    assert seconds["schedule"] == pytest.approx(done.scheduling)
    assert seconds["work"] == pytest.approx(done.working)
    assert seconds["exchange"] == pytest.approx(done.exchanging)
    assert {span.name for span in trace.spans} == {f"round {number}" for number in range(5)}


@pytest.mark.parametrize("where", ["push", "pull", "commit"])
@pytest.mark.parametrize("after", [0, 3])
def test_an_error_on_one_rank_is_raised_on_all(world, where, after):
    x, y = problem()

    class Fails(Lasso):
        calls = 0

        def fail(self, name):
            if name == where and world.rank == world.size - 1:
                self.calls += 1
                if self.calls > after:
                    raise KeyError("by hand")

        def push(self, own):
            self.fail("push")
            return super().push(own)

        def pull(self, own, total):
            self.fail("pull")
            return super().pull(own, total)

        def commit(self, effect):
            self.fail("commit")
            super().commit(effect)

    for shards in grids(world):
        with Layout(world, samples=SAMPLES, variables=VARIABLES, shards=shards) as layout:
            with pytest.raises(KeyError, match="by hand"):
                run(Fails(x, y, layout), RoundRobin(VARIABLES, 2), after + 1, layout)
            run(Lasso(x, y, layout), RoundRobin(VARIABLES, 2), 2, layout)  # the ranks go on


def test_arrays_of_the_wrong_size(world):
    x, y = problem()

    class Short(Lasso):
        def push(self, own):
            return super().push(own)[1:] if world.rank == 0 else super().push(own)

    with Layout(world, samples=SAMPLES, variables=VARIABLES) as layout:
        with pytest.raises(ValueError, match="push must return"):
            run(Short(x, y, layout), RoundRobin(VARIABLES, VARIABLES), 3, layout)
        with pytest.raises(ValueError, match="18 variables, the layout 17"):
            run(Lasso(x, y, layout), RoundRobin(18, 1), 3, layout)


@pytest.mark.parametrize("name", ["width", "effects"])
def test_programs_that_differ_between_ranks(world, name):
    x, y = problem()
    with Layout(world, samples=SAMPLES, variables=VARIABLES, shards=world.size if name == "width" else 1) as layout:
        program = Lasso(x, y, layout)
        setattr(program, name, getattr(program, name) + (world.rank > 0))
        if world.size > 1:
            with pytest.raises(ValueError, match="programs of ranks"):
                run(program, RoundRobin(VARIABLES, 1), 1, layout)


def test_what_layouts_refuse(world):
    with pytest.raises(ValueError, match="shards must divide"):
        Layout(world, samples=9, variables=9, shards=world.size + 1)
    with pytest.raises(ValueError, match="shards must divide"):
        Layout(world, samples=9, variables=9, shards=0)
    with pytest.raises(ValueError, match="costs"):
        Layout(world, samples=9, variables=2, costs=np.array([1, np.nan]))
    if world.size > 1:
        with pytest.raises(MismatchError, match="Layout of"):
            Layout(world, samples=world.rank, variables=9)
