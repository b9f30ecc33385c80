"""Spellings for terminals and files whose encoding lacks a letter."""

from __future__ import annotations

import codecs

__all__ = ["HANDLER"]

# The name of the error handler, for `io.TextIOWrapper.reconfigure`.
HANDLER = "sfb.spell"

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


codecs.register_error(HANDLER, _spell)
