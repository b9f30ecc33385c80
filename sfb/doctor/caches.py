"""Files between runs: compiled kernels, the user's cache, the profile."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import sfb.kernels as kernels
from sfb.doctor.finding import Finding, error, ok, several, warning
from sfb.runtime.compiled import cache_folder, missing
from sfb.tuning.lookup import cache_file, differences
from sfb.tuning.profile import Profile, ProfileError

__all__ = ["facts", "judge", "judge_profile", "kind_of", "problem_of", "profile_facts", "sees", "token"]

# Days after which a profile is to be measured again.
_OLD = 180
# Nodes from which reading one server takes noticeable time.
_MANY = 32
_NETWORK = ("nfs", "lustre", "gpfs", "beegfs", "ceph", "glusterfs", "smb", "cifs", "pvfs2", "orangefs", "afs", "panfs")


def problem_of(folder: Path) -> str | None:
    """Return why no file can be made in a folder, or in the nearest folder above it that exists; None if it can."""
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(bytes(1 << 12))
            file.flush()
    except OSError as problem:
        return f"{there}: {problem.strerror or problem}"
    return None


def kind_of(folder: Path, mounts: str = "/proc/self/mountinfo") -> str:
    """Return the type of the file system that holds a folder, "" where that is unknown."""
    path = str(folder.resolve())
    best = kind = ""
    try:
        lines = Path(mounts).read_text().splitlines()
    except OSError:
        return ""
    for line in lines:
        left, _, right = line.partition(" - ")
        point = left.split()[4].replace("\\040", " ")
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):  # a later mount hides an earlier one
            best, kind = point, right.split()[0]
    return kind


def _absolute(variable: str) -> str | None:
    """Return the folder that a variable names, None if it names none."""
    folder = os.environ.get(variable)
    return str(Path(folder).absolute()) if folder else None


def facts() -> dict[str, Any]:
    """Return where this node keeps compiled kernels and the user's cache, and whether files can be made there."""
    seen: dict[str, Any] = {"numba": None, "compiled": False, "variable": _absolute("NUMBA_CACHE_DIR")}
    try:
        folder = cache_folder()
        seen |= {"numba": str(folder), "problem": problem_of(folder), "type": kind_of(folder)}
        seen["compiled"] = not missing(folder, kernels.STAGES)
    except kernels.KernelError as problem:
        seen["problem"] = str(problem)
    try:
        user = cache_file({}).parent
        seen |= {"user": str(user), "user_problem": problem_of(user)}
    except OSError as problem:
        seen |= {"user": None, "user_problem": str(problem)}
    return seen


def token(folder: str | None) -> Any:
    """Return a file with a new name in the folder, which closing removes; None if there can be none."""
    try:
        return None if folder is None else tempfile.NamedTemporaryFile(dir=folder, prefix=".sfb-doctor-")
    except OSError:
        return None


def sees(folder: str | None, name: str) -> bool:
    """Return whether a file with this name is in the folder."""
    return folder is not None and Path(folder, name).exists()


def judge(names: Sequence[str], seen: Sequence[Mapping[str, Any]], shared: Sequence[bool | None]) -> list[Finding]:
    """Return whether kernels are compiled, and whether caches can be written.

    Args:
        names: The name of each node.
        seen: What `facts` returned on each.
        shared: Whether each node sees a file that the first has made in its folder of kernels; None if unknown.
    """
    return [*_numba(names, seen, shared), _user(names, seen)]


def _numba(names: Sequence[str], seen: Sequence[Mapping[str, Any]], shared: Sequence[bool | None]) -> list[Finding]:
    topic = "Numba cache"
    nowhere = {name: its["problem"] for name, its in zip(names, seen, strict=True) if its["numba"] is None}
    if nowhere:
        first = next(iter(nowhere))
        return [
            error(
                topic,
                f"{several(nowhere)}: {nowhere[first]}",
                "install Numba, or set NUMBA_CACHE_DIR to a folder that the job can write on every node",
            )
        ]
    locked = {name: its["problem"] for name, its in zip(names, seen, strict=True) if its["problem"]}
    cold = [name for name, its in zip(names, seen, strict=True) if not its["compiled"]]
    found = []
    if locked:
        first = next(iter(locked))
        grade = error if first in cold else warning
        found.append(
            grade(
                topic,
                f"{several(locked)}: compiled kernels cannot be kept, {locked[first]}"
                + ("; each run compiles them for half a minute" if first in cold else ""),
                "set NUMBA_CACHE_DIR to a folder that the job can write, and that only you can write",
            )
        )
    elif cold:
        found.append(
            warning(
                topic,
                f"{several(cold)}: the kernels are not compiled yet, the first call will take half a minute",
                "sfb warmup, with one rank on each node that has a cache of its own",
            )
        )
    ignored = {
        name: its["variable"]
        for name, its in zip(names, seen, strict=True)
        if its["variable"] and not Path(its["numba"]).is_relative_to(its["variable"])
    }
    if ignored:
        first = next(iter(ignored))
        text = f"{several(ignored)}: Numba cannot use the folder of NUMBA_CACHE_DIR, {ignored[first]}"
        found.append(warning(topic, text, "let it name a folder that the job can write, or unset it"))
    one = seen[0]
    text = f"{one['numba']} ({one['type'] or 'file system unknown'})"
    network = one["type"].removeprefix("fuse.").startswith(_NETWORK)
    if len(names) > 1 and all(shared):
        text += ", shared by all nodes"
    elif len(names) > 1 and not any(shared[1:]):
        text += ", another one on each node"
    elif len(names) > 1:
        text += f", not the one of {several(name for name, its in zip(names, shared, strict=True) if not its)}"
    if network and len(names) >= _MANY:
        found.append(
            warning(
                topic,
                f"{text}; {len(names)} nodes read it from one server",
                "NUMBA_CACHE_DIR names a folder local to each node; then sfb warmup on all of them",
            )
        )
    elif not found:
        found.append(ok(topic, f"kernels are compiled, {text}"))
    return found


def _user(names: Sequence[str], seen: Sequence[Mapping[str, Any]]) -> Finding:
    topic = "user's cache"
    locked = {name: its["user_problem"] for name, its in zip(names, seen, strict=True) if its["user_problem"]}
    if not locked:
        return ok(topic, f"{seen[0]['user']} can be written")
    first = next(iter(locked))
    return warning(
        topic,
        f"{several(locked)}: {seen[0]['user'] or 'no folder'} cannot be written, {locked[first]}; profiles are not "
        "kept, and each run measures one",
        "sfb tune -o FILE and SFB_PROFILE=FILE, or set XDG_CACHE_HOME to a folder that the job can write",
    )


def profile_facts(who: Mapping[str, Any], variable: str | None = None) -> dict[str, Any]:
    """Return what is known of the profile of ranks with the identity ``who``.

    Args:
        who: What a profile depends on.
        variable: The value of SFB_PROFILE, None to read it.
    """
    named = os.environ.get("SFB_PROFILE") if variable is None else variable
    seen: dict[str, Any] = {"named": bool(named), "path": named or None, "differs": "", "age": None, "problem": None}
    try:
        path = Path(named) if named else cache_file(who)
        seen["path"] = str(path)
        if not named and not path.exists():
            return {**seen, "absent": True, "others": len(list(path.parent.glob("profile-*.json")))}
        seen["differs"] = differences(Profile.load(path), who)
        seen["age"] = (time.time() - path.stat().st_mtime) / 86400
    except ProfileError as problem:
        seen["problem"] = str(problem)
    except OSError as problem:
        return {**seen, "absent": True, "others": 0, "problem": str(problem)}
    return {**seen, "absent": False}


def judge_profile(seen: Mapping[str, Any]) -> Finding:
    """Return whether a profile is present and fresh.

    Args:
        seen: What `profile_facts` returned.
    """
    topic = "profile"
    tune = "sfb tune, on these ranks, measures one in 10 s"
    if seen["absent"]:
        others = f"; {seen['others']} of other ranks, MPIs or versions in the user's cache" if seen["others"] else ""
        return warning(topic, f"none of these ranks, so each run measures for up to half a second{others}", tune)
    if seen["problem"]:
        return (error if seen["named"] else warning)(topic, seen["problem"], tune)
    name = f"SFB_PROFILE={seen['path']}" if seen["named"] else seen["path"]
    if seen["differs"]:
        return warning(topic, f"{name} was measured elsewhere: {seen['differs']}", tune)
    if seen["age"] > _OLD:
        return warning(topic, f"{name} is {seen['age']:.0f} days old", f"{tune}, after updates above all")
    return ok(topic, f"{name}, of these ranks, {max(0, int(seen['age']))} days old")
