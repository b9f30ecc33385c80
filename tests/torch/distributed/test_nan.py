"""MIN and MAX in the backend "sfb" where a rank has NaN: NaN wins, as in torch.minimum and torch.maximum."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
import torch.distributed as dist  # noqa: E402
from torch.distributed import ReduceOp  # noqa: E402

pytestmark = [pytest.mark.mpi, pytest.mark.filterwarnings("ignore:.*is deprecated. Please use:FutureWarning")]


@pytest.mark.parametrize("op", [ReduceOp.MIN, ReduceOp.MAX], ids=["min", "max"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("count", [5, 20000])  # MPI's, and those that go to sfb.Comm
def test_nan_wins(default_group, rng, dtype, op, count):
    size, me = dist.get_world_size(), dist.get_rank()
    given = torch.tensor(rng.standard_normal((size, size, count))).to(dtype)
    for rank in range(size):
        given[rank, :, rank % count] = torch.nan
    expected = (given.amin if op == ReduceOp.MIN else given.amax)(0)
    mine, part, whole = given[me].clone(), torch.empty(count, dtype=dtype), given[me].clone()
    dist.reduce_scatter_tensor(part, mine, op)
    dist.reduce(mine, size - 1, op)
    dist.all_reduce(whole, op)
    for got, wanted in ((part, expected[me]), (whole, expected), *([(mine, expected)] if me == size - 1 else [])):
        torch.testing.assert_close(got, wanted, rtol=0, atol=0, equal_nan=True)
