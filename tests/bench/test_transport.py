import pytest

from sfb.bench import transport

pytestmark = pytest.mark.mpi


def test_transport(world):
    config = transport.Config(sizes=(8, 100_000), iterations=1, warmups=1)
    if world.size != 2:
        with pytest.raises(ValueError, match="2 ranks of one node"):
            transport.run(world, config)
        return
    rows = transport.run(world, config)
    assert [row["bytes"] for row in rows] == [8, 100_000]
    assert all(row[name] > 0 for row in rows for name in ("two-sided", "stores", "put"))
