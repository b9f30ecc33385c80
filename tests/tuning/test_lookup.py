"""The profile that a Comm chooses by: measured, given, found, foreign or damaged."""

import logging

import numpy as np
import pytest

import sfb
from sfb.tuning import lookup
from sfb.tuning.profile import Place, Profile

pytestmark = pytest.mark.mpi


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch, tmp_path):
    monkeypatch.setattr(lookup, "_measured", {})
    monkeypatch.setattr(lookup, "cache_file", lambda who: tmp_path / "profile.json")
    monkeypatch.delenv("SFB_PROFILE", raising=False)


def same_everywhere(world, profile):
    texts = world.allgather(profile.to_json())
    assert len(set(texts)) == 1


def test_the_first_choice_measures_for_the_process(comm, world, tmp_path):
    profile = comm.profile
    assert profile.measured
    same_everywhere(world, profile)
    with sfb.Comm(world) as other:  # the same ranks again
        assert other.profile.to_json() == profile.to_json()
    assert not (tmp_path / "profile.json").exists()


def test_tune_measures_and_only_returns(comm, world):
    known = comm.profile
    tuned = comm.tune(0.1)
    assert tuned.measured
    same_everywhere(world, tuned)
    assert comm.profile is known


def test_what_is_kept_is_found(world, tmp_path):
    profile = Profile(latency=5e-3, identity={"hosts": ["here"]})
    if world.rank == 0:
        assert lookup.keep(profile) == tmp_path / "profile.json"
    with sfb.Comm(world) as comm:
        assert comm.profile == profile


def test_a_duplicate_has_the_same_profile(world):
    with sfb.Comm(world, profile=Profile(latency=6e-3)) as comm, comm.Dup() as copy:
        assert copy.profile.latency == 6e-3


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


def test_a_user_without_a_home_has_no_cache(world, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(lookup, "_measured", {})
    monkeypatch.delenv("SFB_PROFILE", raising=False)
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda name: "~/.cache/sfb")
    with sfb.Comm(world) as comm:
        assert comm.profile.measured
    with pytest.raises(OSError, match="set XDG_CACHE_HOME or HOME"):
        lookup.keep(Profile())


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
