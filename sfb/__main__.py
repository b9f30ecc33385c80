"""The command `sfb`, also as `python -m sfb`."""

import signal
import sys


def main() -> None:
    """Run the command line."""
    from sfb.cli import run
    from sfb.cli.train import STOPPED

    code = run()
    if code == STOPPED:
        # Once a rank has ended with this code, srun signals those that are about to, and would return another code.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(code)


if __name__ == "__main__":
    main()
