import json

import numpy as np
import pytest

import sfb
from sfb.bench import allreduce
from sfb.collectives import ALGORITHMS
from sfb.tuning import lookup

pytestmark = pytest.mark.mpi

SMALL = {"shapes": [(40, 30)], "samples": [0, 3], "iterations": 3, "warmups": 1}


@pytest.mark.parametrize("receiver", ["array", "sgd", "momentum"])
@pytest.mark.parametrize("memory", ["shared", "private"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_candidate_is_right(world, capfd, receiver, memory, dtype):
    config = allreduce.Config(**SMALL, receiver=receiver, memory=memory, dtype=dtype)
    rows = allreduce.run(world, config)
    assert [(row["S"], row["algorithm"]) for row in rows] == [(s, a) for s in (0, 3) for a in allreduce.CANDIDATES]
    assert all(row["wrong"] == 0 for row in rows)
    assert all(0 < row["min"] <= row["seconds"] <= row["p99"] for row in rows)
    lines = capfd.readouterr().out.splitlines()
    if world.rank == 0:
        data = [line.split() for line in lines if not line.startswith("#")]
        assert len(data) == len(rows)
        assert {len(line) for line in data} == {len(allreduce.COLUMNS)}
    else:
        assert not lines


@pytest.mark.parametrize(("receiver", "dtype"), [("array", "float64"), ("sgd", "float32"), ("momentum", "float32")])
def test_csr_beside_dense_factors_and_mpi(world, capfd, receiver, dtype):
    config = allreduce.Config(
        shapes=[(8, 900)], samples=[0, 3], iterations=3, warmups=1, receiver=receiver, dtype=dtype, filled=0.02,
        algorithms=allreduce.SPARSE_CANDIDATES,
    )  # fmt: skip
    rows = allreduce.run(world, config)
    names = [row["algorithm"] for row in rows]
    assert names == ["mpi", "densified", "node", "broadcast", "dense", "auto"] * 2
    assert all(row["wrong"] == 0 for row in rows)
    received = {row["algorithm"]: row["wire_bytes"] for row in rows[len(rows) // 2 :]}
    if world.size > 1:
        assert 0 < received["broadcast"] < received["mpi"] / 5
    if world.rank == 0:
        assert "2 % filled" in capfd.readouterr().out


def test_a_wrong_result_is_counted(world, capfd, monkeypatch):
    monkeypatch.setattr(allreduce._Oracle, "wrong", lambda *args: 5)
    rows = allreduce.run(world, allreduce.Config(**SMALL))
    assert all(row["wrong"] == 5 for row in rows)
    if world.rank == 0:
        assert f"# wrong: {5 * len(rows)}" in capfd.readouterr().out


def test_the_oracle_sees_an_element_that_is_off(world):
    factors = sfb.Factors(np.ones((2, 6)), np.ones((2, 5)))
    oracle = allreduce._Oracle(world, factors)
    got = np.full((6, 5), 2.0 * world.size)
    assert oracle.wrong(got, 0) == 0
    got[0, 0] += 1e-9
    got[5, 4] = np.nan
    assert oracle.wrong(got, 0) == 2


def test_all_estimates_rest_on_what_has_been_measured(world, monkeypatch, tmp_path):
    monkeypatch.setattr(lookup, "_measured", {})
    monkeypatch.setattr(lookup, "cache_file", lambda who: tmp_path / "none.json")
    rows = allreduce.run(world, allreduce.Config(shapes=[(40, 30)] * 2, samples=[2], iterations=1))
    first, second = rows[: len(rows) // 2], rows[len(rows) // 2 :]
    estimates = [{row["algorithm"]: row["predicted"] for row in half} for half in (first, second)]
    for name in ALGORITHMS:
        assert estimates[0][name] == estimates[1][name] > 0
    for half, estimate in zip((first, second), estimates, strict=True):
        taken = {row["algorithm"]: row["taken"] for row in half}["auto"]
        assert estimate["auto"] == estimate[taken]


def test_json(world, capfd, tmp_path):
    path = tmp_path / "out.json"
    rows = allreduce.run(world, allreduce.Config(**SMALL, algorithms=["auto"]), json_file=path, as_csv=True)
    assert {row["algorithm"] for row in rows} == {"mpi", "auto"}
    if world.rank == 0:
        content = json.loads(path.read_text())
        assert content["format"] == 1
        assert content["results"] == rows
        assert content["environment"]["ranks"] == world.size
        table = [line for line in capfd.readouterr().out.splitlines() if not line.startswith("#")]
        assert table[0].startswith("K,D,S,algorithm")
        assert len(table) == len(rows) + 1
