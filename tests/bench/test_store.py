import json

import numpy as np
import pytest

from sfb.bench import consistency, store

pytestmark = pytest.mark.mpi


def test_store(world, capsys, tmp_path):
    config = store.Config(shape=(20, 30), samples=(0, 3), topologies=("halton", "ring"), iterations=2, warmups=1)
    rows = store.run(world, config, json_file=tmp_path / "s.json")
    assert [(row["S"], row["topology"]) for row in rows] == [
        (samples, name) for samples in (0, 3) for name in ("Allreduce", "halton", "ring")
    ]
    entry, payload = 56, 4 * 3 * (20 + 30)
    sent = {row["topology"]: row["sent"] for row in rows if row["S"] == 3}
    # Each rank sends P − 1 updates and ends of a clock, its own or others'; a message adds 40 bytes.
    if world.size == 1:
        assert sent["ring"] == 0
    else:
        least = (world.size - 1) * (2 * entry + payload)
        assert least <= sent["ring"] <= least + 40 * 2 * (world.size - 1)
    out = capsys.readouterr().out
    if world.rank == 0:
        assert all(line.startswith("#") or len(line.split()) == 12 for line in out.splitlines())
        assert json.loads((tmp_path / "s.json").read_text())["results"] == rows
    else:
        assert out == ""


@pytest.mark.parametrize("stragglers", ["none", "transient", "permanent"])
def test_consistency(world, tmp_path, stragglers):
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    modes, priorities = ("bsp", "ssp:2", "asp"), ("fifo", "relative")
    config = consistency.Config(
        data="digits", modes=modes, priorities=priorities, stragglers=stragglers, compute=0, steps=30, repeats=1
    )
    rows = consistency.run(world, config)
    assert [(row["mode"], row["priority"]) for row in rows] == [(m, p) for m in modes for p in priorities]
    for row in rows:
        assert row["objective"] < 1.5  # from log 10
    assert rows[0]["curve"][0][2] == pytest.approx(2.3026, abs=1e-3)
    assert rows[0]["staleness"] == 0
    assert rows[0]["differ"] == 0
    if world.rank == 0:
        consistency.draw(rows, tmp_path / "c.png")
        assert (tmp_path / "c.png").stat().st_size > 5000


def test_delays():
    def delays(stragglers, rank):
        config = consistency.Config(stragglers=stragglers, compute=10, steps=1000)
        return consistency._delays(config, rank, np.random.default_rng([0, rank]))

    assert set(delays("none", 0)) == {0.01}
    assert set(delays("permanent", 0)) == {0.02}
    assert set(delays("permanent", 1)) == {0.01}
    assert set(delays("transient", 1)) == {0.01, 0.05}
    assert 50 < np.sum(delays("transient", 1) == 0.05) < 200


def test_unknown_modes():
    for mode in ("ssp", "ssp:-1", "bsp:1", "x"):
        with pytest.raises(ValueError, match="bsp, ssp:S or asp"):
            consistency.consistency_of(mode)
