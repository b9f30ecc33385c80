"""Collectives of the backend "sfb" against gloo, or against what each rank can compute alone."""

from __future__ import annotations

import gc
from datetime import timedelta

import pytest

torch = pytest.importorskip("torch")
import torch.distributed as dist  # noqa: E402
from torch.distributed import ReduceOp  # noqa: E402

# Names before PyTorch 2.13, which later versions take, too.
pytestmark = [pytest.mark.mpi, pytest.mark.filterwarnings("ignore:.*is deprecated. Please use:FutureWarning")]

LARGE = 20000  # elements that go to sfb.Comm
FLOATS = torch.float32, torch.float64, torch.float16, torch.bfloat16
INTEGERS = torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64
DTYPES = (*FLOATS, *INTEGERS, torch.bool, torch.complex64, torch.complex128)
OPS = ReduceOp.SUM, ReduceOp.PRODUCT, ReduceOp.MIN, ReduceOp.MAX, ReduceOp.BAND, ReduceOp.BOR, ReduceOp.BXOR


@pytest.fixture(scope="module", params=["all ranks", "last ranks", "even ranks"])
def groups(request, gloo):
    """A group over sfb, and its ranks; None on a rank that is not in it."""
    size = dist.get_world_size()
    parts = {"all ranks": range(size), "last ranks": range(size // 2, size), "even ranks": range(0, size, 2)}
    ranks = list(parts[request.param])
    ours = dist.new_group(ranks)
    yield ours if dist.get_rank() in ranks else None, ranks
    if dist.get_rank() in ranks:
        dist.destroy_process_group(ours)


@pytest.fixture
def group(groups):
    """The group, or a skipped test on ranks that are not in it."""
    ours, ranks = groups
    if ours is None:
        pytest.skip("not in the group")
    return ours, ranks


def values(rng, count, shape, dtype):
    """Return tensors of all ranks, the same list on every rank; small whole numbers, of which sums are exact."""
    return [torch.tensor(rng.integers(0, 4, shape)).to(dtype) for _ in range(count)]


def shape_of(rng):
    return tuple(int(n) for n in rng.integers(1, 6, int(rng.integers(0, 4))))


def fold(tensors, op):
    """Return the reduction of tensors, one by one; of 16 bits in float32, rounded at the end."""
    dtype = tensors[0].dtype
    if dtype in (torch.float16, torch.bfloat16):
        return fold([tensor.float() for tensor in tensors], op).to(dtype)
    rules = {
        ReduceOp.SUM: torch.add,
        ReduceOp.PRODUCT: torch.mul,
        ReduceOp.MIN: torch.minimum,
        ReduceOp.MAX: torch.maximum,
        ReduceOp.BAND: torch.bitwise_and,
        ReduceOp.BOR: torch.bitwise_or,
        ReduceOp.BXOR: torch.bitwise_xor,
    }
    rule = next(rule for kind, rule in rules.items() if kind == op)
    total = tensors[0]
    for tensor in tensors[1:]:
        total = rule(total, tensor)
    return total


def undefined(op, dtype):
    bitwise = any(op == kind for kind in (ReduceOp.BAND, ReduceOp.BOR, ReduceOp.BXOR))
    return (bitwise and dtype.is_floating_point) or (op != ReduceOp.SUM and dtype.is_complex)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_all_reduce(group, rng, dtype):
    ours, ranks = group
    for op in OPS:
        for shape in (shape_of(rng), (LARGE,)):
            given = values(rng, len(ranks), shape, dtype)
            mine = given[ours.rank()].clone()
            if undefined(op, dtype):
                with pytest.raises(ValueError, match=r"is not defined for|does not support"):
                    dist.all_reduce(mine, op, group=ours)
            else:
                dist.all_reduce(mine, op, group=ours)
                assert torch.equal(mine, fold(given, op))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int32, torch.int64, torch.uint8], ids=str)
def test_all_reduce_equals_gloo(gloo, rng, dtype):
    for op in OPS[:4]:
        ours = torch.tensor(rng.integers(1, 3, (3, 7))).to(dtype) + dist.get_rank() % 2
        theirs = ours.clone()
        dist.all_reduce(ours, op)
        dist.all_reduce(theirs, op, group=gloo)
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.complex64], ids=str)
def test_mean(group, rng, dtype):
    ours, ranks = group
    given = values(rng, len(ranks), (5, 3), dtype)
    mine = given[ours.rank()].clone()
    dist.all_reduce(mine, ReduceOp.AVG, group=ours)
    total = fold(given, ReduceOp.SUM)
    whole = not (dtype.is_floating_point or dtype.is_complex)
    mean = total.div(len(ranks), rounding_mode="trunc") if whole else (total.to(torch.complex128) / len(ranks))
    assert torch.allclose(mine.to(mean.dtype), mean, rtol=1e-2 if dtype == torch.bfloat16 else 1e-6)


def test_premultiplied_sum(group):
    ours, ranks = group
    mine = torch.full((4,), float(ours.rank()))
    dist.all_reduce(mine, dist._make_nccl_premul_sum(0.5), group=ours)
    assert torch.equal(mine, torch.full((4,), sum(range(len(ranks))) / 2))


def test_half_sums_are_formed_in_float32(group):
    ours, ranks = group
    mine = torch.tensor([2048.0 if ours.rank() == 0 else 1.0]).half()
    dist.all_reduce(mine, group=ours)
    assert mine.item() == torch.tensor(2048.0 + len(ranks) - 1).half().item()


def test_all_ranks_hold_the_same_bits(default_group, rng):
    for count in (100, LARGE):
        mine = torch.tensor(rng.standard_normal(count) * (dist.get_rank() + 1) ** 7).float()
        dist.all_reduce(mine)
        first = mine.clone()
        dist.broadcast(first, 0)
        assert torch.equal(first, mine)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_broadcast_reduce(group, rng, dtype):
    ours, ranks = group
    for root in ranks:
        given = values(rng, len(ranks), shape_of(rng), dtype)
        mine = given[ours.rank()].clone()
        dist.broadcast(mine, root, group=ours)
        assert torch.equal(mine, given[ranks.index(root)])
        mine = given[ours.rank()].clone()
        dist.reduce(mine, root, group=ours)
        expected = fold(given, ReduceOp.SUM) if dist.get_rank() == root else given[ours.rank()]
        assert torch.equal(mine, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gather_scatter(group, rng, dtype):
    ours, ranks = group
    for root in ranks:
        given = values(rng, len(ranks), shape_of(rng), dtype)
        is_root = dist.get_rank() == root
        taken = [torch.empty_like(x) for x in given] if is_root else None
        dist.gather(given[ours.rank()], taken, root, group=ours)
        if is_root:
            assert all(map(torch.equal, taken, given))
        mine = torch.empty_like(given[0])
        dist.scatter(mine, given if is_root else None, root, group=ours)
        assert torch.equal(mine, given[ours.rank()])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_all_gather(group, rng, dtype):
    ours, ranks = group
    for shape in ((2, 3), (LARGE,)):
        given = values(rng, len(ranks), shape, dtype)
        taken = [torch.empty_like(x) for x in given]
        dist.all_gather(taken, given[ours.rank()], group=ours)
        assert all(map(torch.equal, taken, given))
        whole = torch.empty((len(ranks), *shape), dtype=dtype)
        dist.all_gather_into_tensor(whole, given[ours.rank()], group=ours)
        assert torch.equal(whole, torch.stack(given))


def test_all_gather_of_different_sizes(group):
    ours, ranks = group
    given = [torch.arange(3 * i, dtype=torch.float32) for i in range(len(ranks))]
    taken = [torch.empty_like(x) for x in given]
    dist.all_gather(taken, given[ours.rank()], group=ours)
    assert all(map(torch.equal, taken, given))


def test_all_gather_of_a_part_of_the_output(default_group):
    size, rank = dist.get_world_size(), dist.get_rank()
    for count in (3, LARGE):
        whole = torch.full((size * count,), -1.0)
        mine = whole[rank * count : (rank + 1) * count].fill_(rank)
        dist.all_gather_into_tensor(whole, mine)
        assert torch.equal(whole, torch.arange(size).repeat_interleave(count).float())


@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS, torch.complex64], ids=str)
def test_reduce_scatter(group, rng, dtype):
    ours, ranks = group
    for shape in ((2, 3), (LARGE,)):
        given = [values(rng, len(ranks), shape, dtype) for _ in ranks]
        mine = torch.empty(shape, dtype=dtype)
        expected = fold([parts[ours.rank()] for parts in given], ReduceOp.SUM)
        dist.reduce_scatter(mine, given[ours.rank()], group=ours)
        assert torch.equal(mine, expected)
        mine.zero_()
        dist.reduce_scatter_tensor(mine, torch.stack(given[ours.rank()]), group=ours)
        assert torch.equal(mine, expected)


def test_reduce_scatter_of_different_sizes(group):
    ours, ranks = group
    parts = [torch.full((2 + i,), float(ours.rank() + i)) for i in range(len(ranks))]
    mine = torch.empty(2 + ours.rank())
    dist.reduce_scatter(mine, parts, group=ours)
    assert torch.equal(mine, torch.full_like(mine, float(sum(range(len(ranks))) + len(ranks) * ours.rank())))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_all_to_all(group, rng, dtype):
    ours, ranks = group
    sizes = rng.integers(0, 5, (len(ranks), len(ranks)))  # rows from one rank to another
    given = [[torch.tensor(rng.integers(0, 4, (int(n), 3))).to(dtype) for n in row] for row in sizes]
    expected = [row[ours.rank()] for row in given]
    taken = [torch.empty_like(x) for x in expected]
    dist.all_to_all(taken, given[ours.rank()], group=ours)
    assert all(map(torch.equal, taken, expected))
    whole = torch.empty_like(torch.cat(expected))
    rows = [[int(n) for n in part] for part in (sizes[:, ours.rank()], sizes[ours.rank()])]
    dist.all_to_all_single(whole, torch.cat(given[ours.rank()]), *rows, group=ours)
    assert torch.equal(whole, torch.cat(expected))


def test_tensors_that_do_not_lie_in_order(group):
    ours, ranks = group
    base = torch.arange(12.0).view(3, 4) + ours.rank()
    total = sum(torch.arange(12.0).view(3, 4).t() + rank for rank in range(len(ranks)))
    mine = base.clone().t()
    dist.all_reduce(mine, group=ours)
    assert torch.equal(mine, total)
    assert mine.stride() == (1, 4)
    taken = [torch.empty(3, 4).t() for _ in ranks]
    dist.all_gather(taken, base.t(), group=ours)
    assert all(torch.equal(x, torch.arange(12.0).view(3, 4).t() + rank) for rank, x in enumerate(taken))


def test_empty_and_scalar_tensors(group):
    ours, ranks = group
    for shape in ((0,), (2, 0, 3), ()):
        mine = torch.ones(shape)
        dist.all_reduce(mine, group=ours)
        dist.broadcast(mine, ranks[0], group=ours)
        assert torch.equal(mine, torch.full(shape, float(len(ranks))))


def test_asynchronous_collectives_are_done_in_order(group):
    ours, ranks = group
    tensors = [torch.full((size,), float(i)) for i, size in enumerate([3, LARGE, 1, 2 * LARGE, 7] * 4)]
    works = [dist.all_reduce(x, group=ours, async_op=True) for x in tensors]
    last = torch.ones(2)
    dist.all_reduce(last, group=ours)
    assert torch.equal(last, torch.full((2,), float(len(ranks))))
    for i, (x, work) in reversed(list(enumerate(zip(tensors, works, strict=True)))):
        assert work.wait()
        assert work.is_completed()
        assert work.is_success()
        assert (x == i * len(ranks)).all()


def test_futures(group):
    ours, ranks = group
    mine = torch.ones(LARGE)
    future = dist.all_reduce(mine, group=ours, async_op=True).get_future()
    assert torch.equal(future.then(lambda f: f.value()[0] * 2).wait(), torch.full((LARGE,), 2.0 * len(ranks)))


def test_a_callback_may_wait_for_another_collective(group):
    ours, ranks = group

    def again(future):
        (total,) = future.value()
        return dist.all_reduce(total, group=ours, async_op=True).get_future().wait()[0]

    future = dist.all_reduce(torch.ones(3), group=ours, async_op=True).get_future().then(again)
    assert torch.equal(future.wait(), torch.full((3,), float(len(ranks) ** 2)))


def test_objects(group):
    ours, ranks = group
    mine = {"rank": ours.rank(), "text": "x" * 100 * ours.rank()}
    everyone = [{"rank": rank, "text": "x" * 100 * rank} for rank in range(len(ranks))]
    taken = [None] * len(ranks)
    dist.all_gather_object(taken, mine, group=ours)
    assert taken == everyone
    shared = [mine] if ours.rank() == 0 else [None]
    dist.broadcast_object_list(shared, ranks[0], group=ours)
    assert shared == everyone[:1]
    part = [None]
    dist.scatter_object_list(part, everyone if ours.rank() == 0 else None, ranks[0], group=ours)
    assert part == [mine]


def test_coalesced_forms(group):
    ours, ranks = group
    size = len(ranks)
    tensors = [torch.ones(3), torch.ones(2, 2), torch.ones(4, dtype=torch.int64)]
    ours.allreduce_coalesced(tensors).wait()
    assert all((x == size).all() for x in tensors)
    with dist._coalescing_manager(group=ours, device=torch.device("cpu"), async_ops=True) as works:
        for x in tensors:
            dist.all_reduce(x, group=ours)
    works.wait()
    assert all((x == size**2).all() for x in tensors)
    outputs, inputs = [torch.empty(2 * size), torch.empty(size)], [torch.ones(2), torch.full((1,), 3.0)]
    ours.all_gather_single_coalesced(outputs, inputs).wait()
    assert torch.equal(outputs[1], torch.full((size,), 3.0))
    ours.reduce_scatter_single_coalesced(inputs, outputs).wait()
    assert torch.equal(inputs[1], torch.full((1,), 3.0 * size))


def test_messages(default_group):
    size, rank = dist.get_world_size(), dist.get_rank()
    if size == 1:
        pytest.skip("needs two ranks")
    right, left = (rank + 1) % size, (rank - 1) % size
    for count in (1, 1 << 18):
        taken = [torch.empty(count), torch.empty(count, dtype=torch.bfloat16)]
        works = [dist.irecv(x, left, tag=tag) for tag, x in enumerate(taken)]
        works += [
            dist.isend(torch.full((count,), float(rank), dtype=x.dtype), right, tag=tag)
            for tag, x in reversed(list(enumerate(taken)))
        ]
        for work in works:
            work.wait()
        assert all((x == left).all() for x in taken)
    mine, taken = torch.tensor([float(rank)]), torch.empty(2)[:1]
    operations = [dist.P2POp(dist.isend, mine, right), dist.P2POp(dist.irecv, taken, left)]
    for work in dist.batch_isend_irecv(operations):
        work.wait()
    assert taken.item() == left


def test_a_message_from_any_rank(default_group):
    size, rank = dist.get_world_size(), dist.get_rank()
    if rank > 0:
        dist.send(torch.full((2,), float(rank)), 0, tag=7)
        return
    sources = set()
    for _ in range(size - 1):
        taken = torch.empty(2)
        source = dist.recv(taken, tag=7)
        assert (taken == source).all()
        sources.add(source)
    assert sources == set(range(1, size))


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: torch.empty(2, device="meta"), ValueError, "takes CPU tensors, got one on meta"),
        (lambda: torch.ones(2).to_sparse(), ValueError, "takes dense tensors, got a sparse_coo one"),
    ],
    ids=["device", "sparse"],
)
def test_what_cannot_be_sent(default_group, make, error, match):
    with pytest.raises(error, match=match):
        dist.all_reduce(make())


def test_sizes_that_do_not_fit(default_group):
    size = dist.get_world_size()
    with pytest.raises(ValueError, match="must have"):
        dist.all_gather_into_tensor(torch.empty(size + 1), torch.ones(1))
    with pytest.raises(ValueError, match=rf"expected {size} outputs, one a rank, got {size + 1}"):
        dist.all_gather([torch.empty(1)] * (size + 1), torch.ones(1))
    with pytest.raises(ValueError, match="split_sizes must be"):
        dist.all_to_all_single(torch.empty(size), torch.ones(size), [1] * size, [2] * size)
    with pytest.raises(ValueError, match="expected a tag from 0 to"):
        default_group.send([torch.ones(1)], 0, -1)


def impatient_group():
    """Return a group of all ranks with a time-out of 50 ms."""
    ours = dist.new_group()
    dist.barrier()
    ours.set_timeout(timedelta(milliseconds=50))
    return ours


def test_a_rank_that_does_not_come_is_reported(default_group):
    ours = impatient_group()
    size, rank = dist.get_world_size(), dist.get_rank()
    late = size - 1
    if size > 1 and rank != late:
        tensor = torch.ones(5)
        with pytest.raises(dist.DistBackendError, match=rf"rank {rank}: Timed out after 0.05 s .* in all_reduce"):
            dist.all_reduce(tensor, group=ours)
        memory = tensor.untyped_storage()
        del tensor
        gc.collect()  # the exception held the frames that held the tensor
        assert torch._C._storage_Use_Count(memory._cdata) > 1  # MPI will write there
        with pytest.raises(dist.DistBackendError, match="cannot be used any more: rank"):
            dist.barrier(group=ours)
    dist.barrier()
    if rank == late:  # what the others gave up is still under way
        ours.set_timeout(timedelta(minutes=1))
        dist.all_reduce(torch.ones(5), group=ours)
    dist.destroy_process_group(ours)


def test_an_error_in_the_thread_reaches_futures(default_group):
    ours = impatient_group()
    size, rank = dist.get_world_size(), dist.get_rank()
    late = size - 1
    if size > 1 and rank != late:
        work = dist.all_reduce(torch.ones(5), group=ours, async_op=True)
        with pytest.raises(RuntimeError, match="Timed out after"):
            work.get_future().wait()
        assert isinstance(work.exception(), dist.DistBackendError)
        assert not work.is_success()
    dist.barrier()
    if rank == late:
        ours.set_timeout(timedelta(minutes=1))
        dist.all_reduce(torch.ones(5), group=ours)
    dist.destroy_process_group(ours)


def test_a_message_that_does_not_come_is_reported(default_group):
    ours = impatient_group()
    if dist.get_world_size() > 1 and dist.get_rank() == 0:
        with pytest.raises(dist.DistBackendError, match=r"Timed out after 0.05 s .* in recv from rank 1"):
            dist.recv(torch.empty(1), 1, group=ours)
    dist.barrier()
    mine = torch.ones(1)
    ours.set_timeout(timedelta(minutes=1))
    dist.all_reduce(mine, group=ours)  # the group goes on
    assert mine.item() == dist.get_world_size()
    dist.destroy_process_group(ours)


def test_monitored_barrier_names_who_is_missing(default_group):
    size, rank = dist.get_world_size(), dist.get_rank()
    ours = dist.new_group()
    ours.monitored_barrier()
    if size > 1 and rank == 0:
        with pytest.raises(dist.DistBackendError, match=f"ranks {', '.join(map(str, range(1, size)))} of process"):
            ours.monitored_barrier(timedelta(milliseconds=50), wait_all_ranks=True)
    dist.barrier()
    dist.destroy_process_group(ours)
    with pytest.raises(dist.DistBackendError, match="cannot be used any more: it is shut down"):
        ours.barrier()


def test_what_a_group_says_of_itself(default_group):
    assert dist.get_backend() == "sfb"
    assert default_group.name() == "sfb"
    assert default_group.comm.size == dist.get_world_size() == default_group.size()
    assert dist.get_rank() == default_group.comm.rank
