import json
import re

import numpy as np
import pytest

from sfb.bench import arrays

pytestmark = pytest.mark.mpi

SMALL = {"sizes": [8, 40_000], "iterations": 3, "warmups": 1}


@pytest.mark.parametrize("memory", ["shared", "private"])
@pytest.mark.parametrize(("dtype", "op"), [("float32", "sum"), ("float64", "max"), ("int32", "min"), ("int64", "prod")])
def test_arrays_of_all_kinds_are_right(world, capfd, memory, dtype, op):
    rows = arrays.run(world, arrays.Config(**SMALL, memory=memory, dtype=dtype, op=op))
    assert [row["bytes"] for row in rows] == SMALL["sizes"]
    assert all(row["wrong"] == 0 for row in rows)
    assert all(row["sfb_busbw"] == pytest.approx(row["sfb_algbw"] * 2 * (world.size - 1) / world.size) for row in rows)
    lines = capfd.readouterr().out.splitlines()
    if world.rank == 0:
        data = [line.split() for line in lines if not line.startswith("#")]
        assert {len(line) for line in data} == {len(arrays.COLUMNS)}
        assert any(re.search(r"at the [\d.]+ [kMGT]?B/s of ranks that copy", line) for line in lines)


@pytest.mark.parametrize("collective", ["reduce_scatter_block", "allgather"])
def test_other_collectives_are_right(world, collective):
    rows = arrays.run(world, arrays.Config(sizes=[40, 400_000], iterations=3, warmups=1, collective=collective))
    assert all(row["wrong"] == 0 for row in rows)
    assert all(row["mpi_busbw"] == pytest.approx(row["mpi_algbw"] * (world.size - 1) / world.size) for row in rows)


def test_wrong_elements_are_counted(world):
    theirs = np.full(10, world.size, np.float32)
    assert arrays._wrong(world, theirs, theirs.copy(), same=True) == 0
    ours = theirs.copy()
    ours[3] += 1e-3
    assert arrays._wrong(world, theirs, ours, same=True) == world.size
    if world.size > 1:
        ours[3] += world.rank
        assert arrays._wrong(world, theirs, ours, same=True) == 10


def test_plot_and_json(world, tmp_path):
    rows = arrays.run(world, arrays.Config(**SMALL), json_file=tmp_path / "rows.json")
    if world.rank == 0:
        assert json.loads((tmp_path / "rows.json").read_text())["results"] == rows
        arrays.draw(rows, tmp_path / "rows.png")
        assert (tmp_path / "rows.png").stat().st_size > 10_000


def test_the_limit_between_nodes_is_that_of_the_link(world, monkeypatch):
    if world.size == 1:
        pytest.skip("needs nodes")
    monkeypatch.setattr(arrays, "_layout", lambda comm: (1, world.size))
    rows = arrays.run(world, arrays.Config(**SMALL, link=1e6))
    for row in rows:
        expected = 2 * row["bytes"] * (world.size - 1) / world.size / 1e6
        assert row["sfb_limit"] * row["sfb_seconds"] == pytest.approx(expected)
    assert arrays._link_rate(world, 1) > 0
