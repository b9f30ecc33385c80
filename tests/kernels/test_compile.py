"""How functions become kernels."""

import importlib.util

import pytest
from numba.core import config

from sfb.kernels import _compile

# A kernel, and another that calls it directly and in a function that is compiled into it.
SOURCE = """
from numba import types
from sfb.kernels._compile import inner, kernel

@kernel([t(t, t) for t in (types.float32, types.float64)], python=False)
def divide(a, b):
    if b == 0:
        raise ValueError("b must not be 0")
    return a / b

@inner
def invert(a):
    return divide(1.0, a)

@kernel([types.float64(types.float64, types.float64)])
def both(a, b):
    return divide(a, b) + invert(b)
"""


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Return a function that loads the kernels as a new process would."""
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path / "cache"))
    file = tmp_path / "quotients.py"
    file.write_text(SOURCE)

    def load():
        spec = importlib.util.spec_from_file_location("quotients", file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


def test_a_kernel_calls_another_by_its_symbol(load):
    both = load().both
    (code,) = both.inspect_llvm().values()
    assert 'declare i32 @"quotients.divide(float64, float64) -> float64"' in code
    assert "fdiv" not in code
    assert both(3.0, 4.0) == 1.0
    with pytest.raises(ValueError, match="b must not be 0"):
        both(3.0, 0.0)


def test_kernels_are_loaded_until_a_source_changes(load, monkeypatch):
    def misses():
        module = load()
        assert module.both(3.0, 4.0) == 1.0
        return [sum(kernel.stats.cache_misses.values()) for kernel in (module.divide, module.both)]

    assert misses() == [2, 1]
    assert misses() == [0, 0]
    monkeypatch.setattr(_compile, "_SOURCES", "others")
    assert misses() == [2, 1]
