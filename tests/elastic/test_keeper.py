"""Copies of a state, and what ranks make of them."""

import numpy as np
import pytest

import sfb
from sfb.elastic.keeper import Keeper

pytestmark = pytest.mark.mpi


class Machine:
    """An object with a state of its own, as PyTorch has them."""

    def __init__(self, value):
        self.value = value

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"]


def made(comm, rank):
    """Return a state whose values tell a rank."""
    adam = sfb.optim.Adam(comm.shared((3, 4), np.float64), lr=0.5)
    inner = {"x": np.full(3, rank), "count": rank}
    return {"w": np.full((2, 2), float(rank)), "adam": adam, "machine": Machine([rank]), "inner": inner, "n": rank}


def test_all_ranks_begin_with_the_state_of_rank_0(comm):
    state, keeper = made(comm, comm.rank), Keeper()
    w, machine = state["w"], state["machine"]
    keeper.begin(comm, state)
    keeper.restore(comm, state)
    assert state["w"] is w
    assert (w == 0).all()
    assert machine.value == [0]
    assert state["n"] == state["inner"]["count"] == 0
    assert (state["inner"]["x"] == 0).all()


def test_ranks_go_back_to_the_one_that_has_come_least_far(comm):
    state, keeper = made(comm, 7), Keeper()
    for number in range(3 + (comm.rank != comm.size - 1)):  # the last rank lacks a step
        state["w"][:] = number
        state["n"] = number
        keeper.keep(number, state)
    assert keeper.share(comm)
    assert keeper.number == 2
    state["w"][:] = -1
    keeper.restore(comm, state)
    assert (state["w"] == 2).all()
    assert state["n"] == 2


def test_a_rank_without_a_copy_sends_all_to_the_beginning(comm):
    keeper = Keeper()
    if comm.rank > 0 or comm.size == 1:
        keeper.keep(3, {"n": 1})
    assert keeper.share(comm) == (comm.size == 1)
    assert keeper.number == (3 if comm.size == 1 else -1)


def test_an_optimizer_gets_state_steps_and_settings_back(comm):
    state, keeper = made(comm, 0), Keeper()
    adam = state["adam"]
    keeper.keep(0, {"adam": adam})
    comm.Allreduce(sfb.Factors(np.ones((2, 3)), np.ones((2, 4))), adam)
    keeper.keep(1, {"adam": adam})
    expected = [np.array(array) for array in (adam.array, *adam.state)]
    adam.lr = 0.25
    comm.Allreduce(sfb.Factors(np.ones((2, 3)), np.ones((2, 4))), adam)
    other = sfb.optim.Adam(comm.shared((3, 4), np.float64), lr=1.0)  # as on the ranks that are left
    keeper.restore(comm, {"adam": other})
    assert other.steps == 1
    assert other.lr == 0.5
    for array, wanted in zip((other.array, *other.state), expected, strict=True):
        np.testing.assert_array_equal(array, wanted)
    comm.Allreduce(sfb.Factors(np.ones((2, 3)), np.ones((2, 4))), other)
    assert other.steps == 2


def test_copies_are_made_in_place(comm):
    keeper, w = Keeper(), np.zeros(3)
    keeper.keep(0, {"w": w})
    copy = keeper.copy["w"]
    w[:] = 1
    assert (copy == 0).all()
    keeper.keep(1, {"w": w})
    assert keeper.copy["w"] is copy
    assert (copy == 1).all()


def test_a_state_of_another_form_is_an_error(comm):
    keeper = Keeper()
    keeper.keep(0, {"a": 1})
    with pytest.raises(ValueError, match="was a before a rank died, and is b now"):
        keeper.restore(comm, {"b": 1})
