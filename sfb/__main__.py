"""The command `sfb`, also as `python -m sfb`."""

import sys


def main() -> None:
    """Run the command line."""
    from sfb.cli import run

    sys.exit(run())


if __name__ == "__main__":
    main()
