"""Damaged copies of inputs."""

from random import Random

__all__ = ["mutate"]

_NUMBERS = (
    b"0", b"-1", b"1", b"2147483647", b"2147483648", b"4294967296", b"9223372036854775808", b"1" * 30, b"9" * 5000,
    b"1e999", b"-1e999", b"1e-999", b"nan", b"inf", b"-inf", b"NaN", b"Infinity", b"0.1", b".", b"-", b"1_0", b"0x1",
    "\u0661".encode(), "\u212a".encode(), "\u00b2".encode(), b"true", b"null",
)  # fmt: skip
_TOKENS = (
    b"\n", b"\r", b"\r\n", b"\0", b" ", b"\t", b",", b";", b":", b"::", b'"', b"'", b"#", b"[", b"]", b"{", b"}",
    b"[" * 3000, b"(" * 300,
    b"\xff\xfe", b"\xef\xbb\xbf", b"\x80", b"PK\3\4", b"PAR1", b"\x93NUMPY", b"\x1f\x8b", "\u2028".encode(),
    "\ud7ff".encode(), b"qid:1", b"\\u0000", b"\\ud800", b"--", b"=",
)  # fmt: skip


def mutate(data: bytes, random: Random) -> bytes:
    """Return the bytes after a few changes: bits, bytes, pieces cut out, doubled or moved, odd numbers and marks."""
    made = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 3, 6))):
        at = random.randrange(len(made) + 1)
        end = min(len(made), at + random.choice((1, 1, 2, 4, 16, 100)))
        kind = random.randrange(9)
        if kind == 0 and at < len(made):
            made[at] ^= 1 << random.randrange(8)
        elif kind == 1 and at < len(made):
            made[at] = random.choice((0, 1, 9, 10, 32, 127, 128, 255))
        elif kind == 2:
            del made[at:end]
        elif kind == 3:
            made[at:at] = made[at:end]
        elif kind == 4:
            made[at:at] = random.choice(_TOKENS)
        elif kind == 5:
            del made[at:]
        elif kind == 6:
            made[at:end] = random.choice(_NUMBERS)
        elif kind == 7:
            _replace_number(made, random)
        else:
            piece = made[at:end]
            del made[at:end]
            to = random.randrange(len(made) + 1)
            made[to:to] = piece
    return bytes(made)


def _replace_number(made: bytearray, random: Random) -> None:
    """Put another number in the place of one of the numbers of a text."""
    digits = [at for at, byte in enumerate(made) if 48 <= byte <= 57]
    if not digits:
        return
    begin = end = random.choice(digits)
    while begin > 0 and 48 <= made[begin - 1] <= 57:
        begin -= 1
    while end < len(made) and 48 <= made[end] <= 57:
        end += 1
    made[begin:end] = random.choice(_NUMBERS)
