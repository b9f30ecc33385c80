"""Spellings for terminals and files whose encoding lacks a letter."""

from __future__ import annotations

import codecs
import io

__all__ = ["spell"]

_HANDLER = "sfb.spell"
_ASCII = "sfb_ascii"

_SPELLINGS = {
    "×": "x", "·": "*", "−": "-", "–": "-", "…": "...", "→": "->", "←": "<-", "≥": ">=", "≤": "<=", "≈": "~",
    "±": "+-", "½": "1/2", "√": "sqrt", "∞": "inf", "Σ": "sum", "‖": "||", "∝": "~",
    "ᵀ": "^T", "²": "^2", "³": "^3", "₂": "2", "₁": "1",
    "µ": "u", "μ": "u", "λ": "lambda", "α": "alpha", "β": "beta", "ε": "eps", "\u0302": "^",
}  # fmt: skip


def _spell(error: UnicodeError) -> tuple[str, int]:
    """Return other letters for those that an encoding lacks, and where to go on."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_SPELLINGS.get(letter, "?") for letter in error.object[error.start : error.end]), error.end


def _find(name: str) -> codecs.CodecInfo | None:
    """Return ASCII by another name: click takes an output in ASCII for a mistake, and writes UTF-8 to it."""
    if name != _ASCII:
        return None
    found = codecs.lookup("ascii")
    return codecs.CodecInfo(
        found.encode, found.decode, found.streamreader, found.streamwriter, found.incrementalencoder,
        found.incrementaldecoder, name=_ASCII,
    )  # fmt: skip


codecs.register_error(_HANDLER, _spell)
codecs.register(_find)


def spell(stream: object) -> None:
    """Let a text stream write other letters for those that its encoding lacks."""
    if isinstance(stream, io.TextIOWrapper):
        ascii_only = codecs.lookup(stream.encoding).name == "ascii"
        stream.reconfigure(encoding=_ASCII if ascii_only else None, errors=_HANDLER)
