"""What is wrong with data."""

__all__ = ["DataError", "brief"]

_LONG = 60  # characters of a text that a message shows


class DataError(Exception):
    """A model cannot be trained on the data; raised on every rank.

    >>> import sfb.data
    >>> sfb.data.read("missing.csv")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    sfb.data.errors.DataError: no such file; expected mnist, digits, or a file: ...
    """


def brief(text: object) -> str:
    """Return a text, or bytes as text, cut short for a message."""
    shown = text[: _LONG + 1].decode("ascii", "backslashreplace") if isinstance(text, bytes) else str(text)
    return shown if len(shown) <= _LONG else shown[:_LONG] + "…"
