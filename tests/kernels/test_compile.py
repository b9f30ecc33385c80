"""How functions become kernels."""

import importlib.util
import logging
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from jobs import mpirun, needs_mpirun
from numba.core import config

from sfb.kernels import KernelError, _compile, stages

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


def test_a_damaged_cache_is_compiled_again(load, tmp_path, caplog):
    load()
    for file in (tmp_path / "cache").rglob("*both*.nb*"):
        file.write_bytes(file.read_bytes()[:100])
    with caplog.at_level(logging.WARNING, "sfb"):
        assert load().both(3.0, 4.0) == 1.0
    assert "is compiled again" in caplog.text


def test_a_full_disk_costs_only_the_cache(load, monkeypatch, caplog):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_compile.IndexDataCacheFile, "save", full)
    with caplog.at_level(logging.WARNING, "sfb"):
        assert load().both(3.0, 4.0) == 1.0
    assert "No space left" in caplog.text


def test_numba_that_may_not_compile(monkeypatch):
    stages.compiled.cache_clear()
    monkeypatch.setattr(config, "DISABLE_JIT", 1)
    with pytest.raises(KernelError, match="NUMBA_DISABLE_JIT"):
        stages.load("sync")


def test_a_cache_that_cannot_be_written(monkeypatch):
    def nowhere(name):
        raise RuntimeError("cannot cache function 'look': no locator available for file 'sync.py'")

    stages.compiled.cache_clear()
    monkeypatch.setattr(stages, "import_module", nowhere)
    with pytest.raises(KernelError, match="set NUMBA_CACHE_DIR"):
        stages.load("sync")


# Products, rules and 16 bits of float32; prints a digest of the bits.
BITS = """
    import hashlib
    import numpy as np
    from sfb import kernels
    from sfb.kernels import half
    rng = np.random.default_rng(0)
    digest = hashlib.sha256()
    for dtype in (np.float32, np.float64):
        u, v = (rng.standard_normal((300, n)).astype(dtype) for n in (13, 75))
        for rule in (
            kernels.assign(),
            kernels.sgd(0.1, 0.9, 1e-3, nesterov=True),
            kernels.adam(0.1, 3, (0.9, 0.99), 1e-8, 1e-3),
            kernels.adagrad(0.1, 1e-8),
            kernels.proximal(0.1, 1e-2, 1e-2),
        ):
            w, *states = (abs(rng.standard_normal((13, 75))).astype(dtype) for _ in range(1 + rule.states))
            for depth in (3, 300):
                kernels.update(rule, u[:depth], v[:depth], w, states, alpha=0.7)
                kernels.update_dense(rule, w.copy(), w, states, alpha=0.7)
                for array in (w, *states):
                    digest.update(array)
        kernels.shrink_rows(w, 0.1)
        digest.update(w)
    x = np.concatenate([rng.standard_normal(1000), [np.nan, np.inf, 1e-6, 65519]]).astype(np.float32)
    packed, back = np.empty(x.size, np.uint16), np.empty_like(x)
    for kind in half.FORMATS:
        for seed in (None, 1):
            half.pack(x, packed, kind, seed)
            half.unpack(packed, back, kind)
            digest.update(packed)
            digest.update(back)
    print(digest.hexdigest())
"""


@pytest.fixture(scope="module")
def oldest(tmp_path_factory):
    """The environment of kernels for the oldest processor, without fused multiply-adds and 16-bit floats."""
    folder = tmp_path_factory.mktemp("oldest")
    return {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": "", "NUMBA_CACHE_DIR": str(folder)}


def test_every_processor_has_the_same_bits(oldest):
    """The oldest of the architecture beside this one."""

    def bits(**environment):
        command = [sys.executable, "-c", textwrap.dedent(BITS)]
        done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert bits(**oldest) == bits()


@needs_mpirun
def test_ranks_on_unlike_processors_have_the_same_bits(oldest):
    """Factors by each algorithm, and plain arrays, on one node and on nodes of one rank; nobody has to be told."""
    script = Path(__file__).parents[1] / "support" / "mixed_processors.py"
    code, out = mpirun(2, sys.executable, "-m", "mpi4py", script, oldest["NUMBA_CACHE_DIR"], seconds=900)
    assert code == 0, out
    assert out.count(": equal bits") == 24, out
    assert "OTHER" not in out


def test_16_bits_are_loaded_only_where_they_are_asked_for():
    code = (
        "import sys; from sfb import kernels; [kernels.load(m) for s in kernels.STAGES for m in s]; print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert "sfb.kernels.fused" in done.stdout.split()
    assert "sfb.kernels._half" not in done.stdout.split()
