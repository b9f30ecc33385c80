"""Inventories of other projects for intersphinx, from lists of the few names that this site refers to."""

from __future__ import annotations

import zlib
from pathlib import Path

__all__ = ["write_inventories"]


def write_inventories(lists: Path, folder: Path) -> dict[str, tuple[str, str]]:
    """Turn each list in a folder into an inventory, and return what `intersphinx_mapping` wants.

    A list has the address of a project's site in its first line, then a line NAME ROLE PAGE for each name.

    Args:
        lists: The folder of the lists, PROJECT.txt.
        folder: The folder to write to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mapping = {}
    for path in sorted(lists.glob("*.txt")):
        address, *lines = path.read_text(encoding="utf-8").split("\n")
        entries = [line.split() for line in lines if line.strip()]
        body = "".join(f"{name} {role} 1 {page} -\n" for name, role, page in entries)
        head = f"# Sphinx inventory version 2\n# Project: {path.stem}\n# Version: \n"
        head += "# The remainder of this file is compressed using zlib.\n"
        inventory = folder / f"{path.stem}.inv"
        inventory.write_bytes(head.encode() + zlib.compress(body.encode(), 9))
        mapping[path.stem] = (address, str(inventory))
    return mapping
