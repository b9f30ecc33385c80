import math

import pytest

from sfb.training.rates import SCHEDULES, Schedule

FORMULAS = {
    "constant": lambda t: 0.5,
    "step": lambda t: 0.5 * 0.1 ** (t // 4),
    "cosine": lambda t: 0.25 * (1 + math.cos(math.pi * t / 10)),
    "linear": lambda t: 0.5 * (1 - t / 10),
    "invscaling": lambda t: 0.5 / math.sqrt(1 + t),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_rates(name):
    plain = Schedule(name, 0.5, steps=10, drop_every=4)
    warm = Schedule(name, 0.5, steps=15, warmup=5, drop_every=4)
    for t in range(10):
        assert plain(t) == warm(t + 5) == pytest.approx(FORMULAS[name](t))
    assert [warm(step) for step in range(5)] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    assert all(plain(step) >= 0 for step in (10, 11, 1000))  # a run may go on beyond its end
