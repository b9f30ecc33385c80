import itertools
import json

import numpy as np
import pytest

from sfb.tuning.profile import LARGE, Place, Profile, ProfileError, Use

FOUR_NODES = Place(4, 1, 4)
MEASURED = Profile(
    place=FOUR_NODES,
    tables={"allreduce": ((1e3, 1e-4), (1e6, 1e-2)), "rebuild/small": ((1.0, 1e-9),), "rebuild/large": ((1.0, 2e-9),)},
    overheads={"dense": 3e-5},
    identity={"hosts": ["a"]},
)


def test_a_profile_survives_json():
    again = Profile.from_json(MEASURED.to_json())
    assert again.to_json() == MEASURED.to_json()
    assert again.place == FOUR_NODES
    assert again.measured
    assert not Profile.from_json(Profile().to_json()).measured


def test_a_profile_is_described():
    lines = MEASURED.describe()
    assert lines[0] == "measured on 4 ranks, up to 1 on each of 4 nodes, 1 to a core"
    assert any(line.startswith("allreduce") and line.endswith("10000.0") for line in lines)
    assert any(line.startswith("rebuild/large") and line.endswith("1: 2.000") for line in lines)
    assert lines[-1].endswith("dense: 30.0")


def test_the_place_of_ranks():
    assert Place.of([0, 0, 1, 0, 2], 1.5) == Place(5, 3, 3, 1.5)


def changed(**changes):
    data = json.loads(MEASURED.to_json())
    for key, value in changes.items():
        if value is None:
            del data[key]
        else:
            data[key] = value
    return json.dumps(data)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "no profile of format 1"),
        (changed(format=2), "format"),
        (changed(latency=None), "latency"),
        (changed(latency=-1), "latency"),
        (changed(bandwidth=0), "bandwidth"),
        (changed(bandwidth="fast"), "bandwidth"),
        (changed(memory_rate=1e10).replace("10000000000.0", "NaN"), "memory_rate"),
        (changed(tables={"allreduce": [[1, -2]]}), "tables/allreduce"),
        (changed(tables={"allreduce": [[1, 2, 3]]}), "tables/allreduce"),
        (changed(tables={"allreduce": [[2, 1], [1, 1]]}), "must rise"),
        (changed(tables={"guesses": [[1, 1]]}), "guesses"),
        (changed(place={"ranks": 0, "ranks_per_node": 1, "nodes": 1, "sharing": 1}), "place/ranks"),
        (changed(colour="blue"), "colour"),
    ],
)
def test_what_is_no_profile(text, message):
    with pytest.raises(ProfileError, match=message):
        Profile.from_json(text)


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(ProfileError, match="nothing"):
        Profile.load(tmp_path / "nothing")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(ProfileError, match="binary"):
        Profile.load(tmp_path / "binary")


def test_measured_times_are_met_and_interpolated():
    times = [MEASURED.seconds(Use("allreduce", n), FOUR_NODES) for n in (10, 1e3, 1e4, 1e6, 2e6)]
    assert times[:2] == pytest.approx([1e-4, 1e-4])
    assert times[2] == pytest.approx(1e-4 * 10 ** (2 / 3))  # a power law through both points
    assert times[3] == pytest.approx(1e-2)
    assert times[4] == pytest.approx(2e-2, rel=0.05)


def test_other_places_are_scaled_by_the_model():
    plain = Profile()
    use = Use("allreduce", 1e6)
    factor = plain.seconds(use, Place(8, 1, 8)) / plain.seconds(use, FOUR_NODES)
    assert MEASURED.seconds(use, Place(8, 1, 8)) == pytest.approx(1e-2 * factor)


def test_work_of_large_matrices_costs_more_an_element():
    small, large = (MEASURED.seconds(Use("rebuild", n, 1), FOUR_NODES) / n for n in (1, LARGE))
    assert small == pytest.approx(1e-9)
    assert large == pytest.approx(2e-9)


@pytest.mark.parametrize("kind", ["sync", "copy", "allgather", "across", "alltoall", "allreduce", "rebuild", "pass"])
def test_more_costs_more(kind):
    profile, place = Profile(), Place(8, 2, 4, 2.0)
    costs = [profile.seconds(Use(kind, n, 4), place) for n in np.geomspace(1e2, 1e9, 8)]
    assert all(a <= b for a, b in itertools.pairwise(costs))
    assert costs[0] >= 0
