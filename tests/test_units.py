import doctest

import numpy as np
import pytest

from sfb import units


def test_examples():
    failed, tried = doctest.testmod(units)
    assert tried >= 7
    assert not failed


@pytest.mark.parametrize(
    ("text", "size"),
    [("8", 8), ("64K", 65536), ("64kb", 65536), (" 3 MiB ", 3 << 20), ("1g", 1 << 30)],
)
def test_sizes(text, size):
    assert units.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "-8", "1.5K", "1T", "K", "8KK", "٣"])
def test_what_is_no_size(text):
    with pytest.raises(ValueError, match="64K or 128M"):
        units.parse_size(text)


@pytest.mark.parametrize("size", [1, 1023, 1024, 3 << 10, 1 << 20, 48 << 20, 1 << 30, 1 << 42])
def test_a_size_is_read_as_it_was_written(size):
    assert units.parse_size(units.format_size(size)) == size


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("1Gbit/s", 125e6),
        ("10 MB/s", 10e6),
        ("64KiB/s", 65536),
        ("100mbps", 12.5e6),
        ("1.5e3B/s", 1500),
        ("8bit", 1),
        (1000, 1000),
        (0.5, 0.5),
        (np.float64(7), 7),
    ],
)
def test_rates(text, rate):
    assert units.parse_rate(text) == pytest.approx(rate)


@pytest.mark.parametrize("text", ["fast", "", "10", "1.2.3MB/s", "-3MB/s", "0MB/s", 0, -1, float("inf"), float("nan")])
def test_what_is_no_rate(text):
    with pytest.raises(ValueError, match="bandwidth"):
        units.parse_rate(text, "bandwidth")


@pytest.mark.parametrize("wrong", [None, True, [1], 1j])
def test_what_is_not_even_a_number(wrong):
    with pytest.raises(TypeError, match="bandwidth"):
        units.parse_rate(wrong, "bandwidth")


@pytest.mark.parametrize("rate", [1.0, 12.5e6, 125e6, 10e9, 2.5e12])
def test_a_rate_is_read_as_it_was_written(rate):
    assert units.parse_rate(units.format_rate(rate)) == pytest.approx(rate)


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (999.7, "1 kB"),
        (1000, "1 kB"),
        (120e6, "120 MB"),
        (4.264e9, "4.26 GB"),
        (2e15, "2e+03 TB"),
    ],
)
def test_traffic(nbytes, text):
    assert units.format_bytes(nbytes) == text


def test_times():
    assert units.milliseconds(1) == "1000.000"
    assert units.microseconds(0) == "0.0"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("1.5", 1.5), ("90s", 90), ("20m", 1200), ("20 min", 1200), ("1h30m", 5400), ("2d", 172800),
     ("1h 5m 3s", 3903), ("01:30:00", 5400), ("1-00:00:01", 86401), ("0.5H", 1800)],
)  # fmt: skip
def test_durations(text, seconds):
    assert units.parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "-5", "soon", "5x", "1.2.3s", "1:30", "nan", "inf", "h"])
def test_texts_that_are_no_durations(text):
    with pytest.raises(ValueError, match="01:30:00"):
        units.parse_duration(text)


@pytest.mark.parametrize(("seconds", "text"), [(0, "0 s"), (59.6, "1 min"), (3600, "1 h"), (3661, "1 h 1 min")])
def test_shown_durations(seconds, text):
    assert units.format_duration(seconds) == text
