"""Parse damaged inputs that coverage guides, by Atheris (pip install atheris).

    python tests/fuzz/run_atheris.py NAME [options of libFuzzer, such as -runs=100000 or -max_total_time=60]

NAME is that of a parser in targets.py.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
import tempfile
from pathlib import Path

import atheris

import sfb.kernels

for module in pkgutil.iter_modules(sfb.kernels.__path__):  # Numba compiles no instrumented code
    importlib.import_module(f"sfb.kernels.{module.name}")
with atheris.instrument_imports(include=["sfb"]):
    from targets import targets


def main() -> None:
    name, *options = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        with atheris.instrument_imports(include=["sfb"]):
            parser = targets(Path(folder))[name]
        corpus = Path(folder) / "corpus"
        corpus.mkdir()
        for number, seed in enumerate(parser.seeds):
            (corpus / str(number)).write_bytes(seed)
        atheris.Setup([sys.argv[0], *options, str(corpus)], lambda data: parser(data) and None)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
