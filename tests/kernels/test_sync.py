"""Boards, by two processes of which this one plays both."""

import numpy as np
import pytest

from sfb.kernels import header, status, sync

HERE, THERE = 0, 1


@pytest.fixture
def board():
    return np.zeros(2 * header.RING * header.BOARD_WORDS, np.int64)


def meet(board, me, call, digest=5, size=1):
    return sync.meet(board, 2, me, call, digest, size, 0, 10, 2)


def test_nobody_agrees_alone(board):
    assert meet(board, HERE, 1) == status.PENDING
    assert sync.look(board, 2, HERE, 1, 10, 2) == status.PENDING
    assert meet(board, THERE, 1) == status.AGREED
    assert sync.look(board, 2, HERE, 1, 10, 2) == status.AGREED


@pytest.mark.parametrize(
    ("digest", "size", "verdict"), [(5, 2, status.UNEVEN), (6, 1, status.DIFFERENT), (6, 2, status.DIFFERENT)]
)
def test_both_see_the_same_verdict(board, digest, size, verdict):
    meet(board, HERE, 1)
    assert meet(board, THERE, 1, digest, size) == verdict
    assert sync.look(board, 2, HERE, 1, 10, 2) == verdict


def test_a_header_stays_until_the_ring_comes_round(board):
    for call in range(1, header.RING):
        meet(board, HERE, call, digest=call)
    for call in range(1, header.RING):
        assert meet(board, THERE, call, digest=call) == status.AGREED


def test_phases(board):
    for me in (HERE, THERE):
        meet(board, me, 7)
    assert not sync.join(board, 2, HERE, 7, 2, 10, 2)
    sync.reach(board, THERE, 7, 2)
    assert sync.reached(board, 0, 2, 7, 2, 10, 2)
    sync.reach(board, HERE, 7, sync.LAST)
    assert sync.reached(board, 0, 1, 7, sync.LAST, 10, 2)
    assert not sync.reached(board, 0, 2, 7, sync.LAST, 10, 2)
    meet(board, THERE, 7 + header.RING)  # a later call in the same slot is beyond every phase of an earlier one
    assert sync.reached(board, 0, 2, 7, sync.LAST, 10, 2)
