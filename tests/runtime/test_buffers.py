"""The pool of buffers."""

import numpy as np

from sfb.runtime.buffers import Pool, drop_free_buffers

BYTE = np.dtype(np.uint8)


def test_a_free_buffer_serves_again():
    pool = Pool()
    _, small = pool.acquire((10,), BYTE)
    _, large = pool.acquire((100,), BYTE)
    pool.release(large)
    pool.release(small)
    array, memory = pool.acquire((2, 4), BYTE)
    assert array.shape == (2, 4)
    assert memory is small, "the smallest that is large enough"
    assert pool.acquire((3, 5), np.dtype(np.float32))[1] is large


def test_the_largest_free_buffer_makes_room_for_a_larger_one():
    pool = Pool()
    memories = [pool.acquire((size,), BYTE)[1] for size in (10, 100)]
    for memory in memories:
        pool.release(memory)
    _, larger = pool.acquire((1000,), BYTE)
    assert larger.nbytes == 1000
    assert pool.acquire((1,), BYTE)[1] is memories[0]
    assert pool.acquire((1,), BYTE)[1] is not memories[1]


def test_free_buffers_of_all_pools_can_be_dropped():
    first, second = Pool(), Pool()
    used, _ = first.acquire((8,), np.dtype(np.int64))
    used[:] = 7
    for pool in (first, second):
        pool.release(pool.acquire((50,), BYTE)[1])
    drop_free_buffers()
    for pool in (first, second):
        assert pool.acquire((1,), BYTE)[1].nbytes == 1
    assert (used == 7).all()
