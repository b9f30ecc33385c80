"""Profiles of the ranks that run: measured, found, foreign."""

import logging

import numpy as np
import pytest

import sfb
from sfb.collectives import ALGORITHMS
from sfb.tuning import calibrate
from sfb.tuning.profile import Place, Profile

pytestmark = pytest.mark.mpi


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch, tmp_path):
    monkeypatch.setattr(calibrate, "_measured", {})
    monkeypatch.setattr(calibrate, "cache_file", lambda who: tmp_path / "profile.json")
    monkeypatch.delenv("SFB_PROFILE", raising=False)


def same_everywhere(world, profile):
    texts = world.allgather(profile.to_json())
    assert len(set(texts)) == 1


def test_the_first_choice_measures(comm, world):
    profile = comm.profile
    assert profile.measured
    assert profile.place.ranks == world.size
    assert profile.identity["ranks_per_node"] == [world.size] or comm.node.size < world.size
    assert set(profile.overheads) == set(ALGORITHMS)
    same_everywhere(world, profile)
    with sfb.Comm(world) as other:  # the same ranks again
        assert other.profile.to_json() == profile.to_json()


def test_stated_rates_where_runs_are_to_be_reproducible(world):
    with sfb.Comm(world, reproducible=True) as comm:
        assert comm.profile == Profile()
        plan = comm.plan(sfb.Factors(np.ones((2, 4)), np.ones((2, 3))), np.empty((4, 3)))
        assert plan.trial is None
        assert "stated rates" in plan.explain()


def test_a_given_profile_is_taken_and_a_foreign_one_named(world, tmp_path, caplog):
    foreign = Profile(
        latency=1e-3,
        place=Place(64, 8, 8),
        tables={"allreduce": ((1.0, 1e-3),)},
        identity={"hosts": ["elsewhere"], "ranks_per_node": [8] * 8, "mpi": "?", "threads": 1, "sfb": "0"},
    )
    path = tmp_path / "foreign.json"
    path.write_text(foreign.to_json())
    for given in (foreign, path, str(path)):
        caplog.clear()
        with sfb.Comm(world, profile=given) as comm, caplog.at_level(logging.WARNING, "sfb"):
            assert comm.profile.latency == 1e-3
        messages = [record.getMessage() for record in caplog.records]
        assert any("measured elsewhere" in message and "elsewhere" in message for message in messages) == (
            world.rank == 0
        )


def test_the_environment_and_the_cache(world, tmp_path, monkeypatch, caplog):
    if world.rank == 0:
        (tmp_path / "profile.json").write_text(Profile(latency=3e-3).to_json())
    with sfb.Comm(world) as comm:
        assert comm.profile.latency == 3e-3
    (tmp_path / "named.json").write_text(Profile(latency=4e-3).to_json())
    monkeypatch.setenv("SFB_PROFILE", str(tmp_path / "named.json"))
    with sfb.Comm(world) as comm:
        assert comm.profile.latency == 4e-3


def test_a_damaged_cache_is_ignored_and_named(world, tmp_path, caplog):
    if world.rank == 0:
        (tmp_path / "profile.json").write_text("{")
    with sfb.Comm(world) as comm, caplog.at_level(logging.WARNING, "sfb"):
        assert comm.profile.measured
    assert any("damaged" in record.getMessage() for record in caplog.records) == (world.rank == 0)


def test_a_profile_that_is_none(world, tmp_path, monkeypatch):
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(sfb.ProfileError, match=r"bad\.json"):
        sfb.Comm(world, profile=tmp_path / "bad.json")
    monkeypatch.setenv("SFB_PROFILE", str(tmp_path / "bad.json"))
    factors, g = sfb.Factors(np.ones((2, 4)), np.ones((2, 3))), np.empty((4, 3))
    with sfb.Comm(world) as comm:
        with pytest.raises(sfb.ProfileError, match=r"rank 0: .*bad\.json"):
            comm.Allreduce(factors, g)
        comm.Allreduce(factors, g, algorithm="dense")  # needs no profile
        np.testing.assert_array_equal(g, 2 * world.size)


def test_trials_end_on_all_ranks_alike(comm, world):
    factors, g = sfb.Factors(np.ones((4, 60)), np.ones((4, 50))), np.empty((60, 50))
    while (plan := comm.plan(factors, g)).trial is not None:
        comm.Allreduce(factors, g)
        np.testing.assert_array_equal(g, 4 * world.size)
    comm.Allreduce(factors, g)
    assert len(set(world.allgather((plan.algorithm, str(plan.measured))))) == 1
    assert comm.last_exchange.algorithm == plan.algorithm or plan.measured
