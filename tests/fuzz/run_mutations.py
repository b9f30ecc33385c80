"""Parse damaged inputs by the million, without any other package.

    python tests/fuzz/run_mutations.py --inputs 1000000 [--seed 0] [NAME ...]
    python tests/fuzz/run_mutations.py --seconds 60

Every fault is printed with the input that caused it. Exits with 1 if there is one.
"""

from __future__ import annotations

import argparse
import logging
import resource
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from random import Random

from mutations import mutate
from targets import targets

_LONGEST = 30  # seconds that an input may take
_MEMORY = 12 << 30  # bytes of address space, so that a huge allocation fails at once


class Hang(BaseException):
    """An input takes too long."""


def _hang(*_: object) -> None:
    raise Hang


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--inputs", type=int, default=100_000, help="of all parsers together")
    parser.add_argument("--seconds", type=float, help="for each parser, in place of a number of inputs")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    signal.signal(signal.SIGALRM, _hang)
    logging.disable()
    faults = total = 0
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None  # files there take a tenth of the time
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        every = targets(Path(folder))
        names = options.names or [*every]
        every["LIBSVM"](every["LIBSVM"].seeds[0])  # compiles a kernel that other formats may lead to
        for number, name in enumerate(names):
            random, parser_of = Random(f"{options.seed} {name}"), every[name]
            wanted = options.inputs // len(names) + (number < options.inputs % len(names))
            for seed in parser_of.seeds:  # compiles kernels
                parser_of(seed)
            refused, count, began, seen = 0, 0, time.monotonic(), set()
            while count < wanted if options.seconds is None else time.monotonic() - began < options.seconds:
                count += 1
                data = random.choice(parser_of.seeds)
                data = mutate(data, random) if random.random() < 0.9 else random.randbytes(random.randrange(200))
                signal.alarm(_LONGEST)
                try:
                    refused += parser_of(data)
                except (Exception, Hang) as error:
                    faults += 1
                    where = traceback.extract_tb(error.__traceback__)[-1]
                    key = type(error).__name__, where.filename, where.lineno
                    if key not in seen:  # each fault once
                        seen.add(key)
                        print(f"FAULT {name}: {type(error).__name__}: {error}\n  {where}\n  {data[:300]!r}", flush=True)
                finally:
                    signal.alarm(0)
            total += count
            seconds = time.monotonic() - began
            print(
                f"{name:20} {count:8d} inputs, {refused:8d} refused, {len(seen)} faults, {seconds:6.1f} s", flush=True
            )
    print(f"{total} inputs, {faults} of them with faults")
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
