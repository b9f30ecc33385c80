"""Interfaces of nodes, and which of them carries messages; needs no MPI."""

from __future__ import annotations

import fcntl
import resource
import socket
import struct
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from sfb.doctor.finding import Finding, ok, several, warning

__all__ = ["carrier", "counters", "facts", "judge", "stated_rate"]

_TOPIC = "network"
_SIOCGIFADDR = 0x8915

# Part of the bytes of messages that the interface which carries them has to have seen.
_MOST = 0.5
# How much faster another interface has to be.
_FASTER = 2.0


def facts(root: Path = Path("/")) -> dict[str, Any]:
    """Return the interfaces that are up, with Mbit/s or None, and the active ports of InfiniBand and its like."""
    interfaces = {}
    for path in sorted((root / "sys/class/net").glob("*")):
        state = _text(path / "operstate")
        if path.name == "lo" or state not in ("up", "unknown"):
            continue
        speed = _text(path / "speed")
        interfaces[path.name] = {
            "speed": int(speed) if speed.isdigit() and int(speed) > 0 else None,
            "mtu": int(_text(path / "mtu") or 0),
            "address": _address(path.name),
        }
    ports = {
        f"{port.parents[1].name}/{port.name}": {"rate": _text(port / "rate"), "layer": _text(port / "link_layer")}
        for port in sorted((root / "sys/class/infiniband").glob("*/ports/*"))
        if "ACTIVE" in _text(port / "state")
    }
    return {"interfaces": interfaces, "ports": ports, "memlock": resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]}


def counters(root: Path = Path("/")) -> dict[str, int]:
    """Return the bytes that each interface, and each port of InfiniBand, has received and sent so far."""
    found: dict[str, int] = {}
    with suppress(OSError, ValueError, IndexError):
        for line in (root / "proc/net/dev").read_text().splitlines()[2:]:
            name, _, rest = line.partition(":")
            numbers = rest.split()
            found[name.strip()] = int(numbers[0]) + int(numbers[8])
    for port in (root / "sys/class/infiniband").glob("*/ports/*"):
        with suppress(ValueError):
            words = (int(_text(port / "counters" / f"port_{way}_data")) for way in ("rcv", "xmit"))
            found[f"{port.parents[1].name}/{port.name}"] = 4 * sum(words)
    return found


def carrier(before: Mapping[str, int], after: Mapping[str, int], moved: int) -> str | None:
    """Return the interface or port that has carried messages, None if none has.

    >>> from sfb.doctor.network import carrier
    >>> carrier({"lo": 0, "eth0": 500}, {"lo": 10, "eth0": 1600}, 1000)
    'eth0'

    Args:
        before: What `counters` returned before them.
        after: What it returned after them.
        moved: The bytes of the messages.
    """
    rise = {name: number - before.get(name, 0) for name, number in after.items()}
    # A bond or a bridge counts what its parts count, too, and has their address.
    name = max(rise, key=lambda name: (rise[name], name.startswith(("bond", "ib", "mlx"))), default=None)
    return name if name is not None and moved > 0 and rise[name] >= _MOST * moved else None


def judge(
    names: Sequence[str],
    seen: Sequence[Mapping[str, Any]],
    used: Sequence[str | None],
) -> list[Finding]:
    """Return which interface carries messages, and whether a faster one does not.

    Args:
        names: The name of each node.
        seen: What `facts` returned on each.
        used: What `carrier` returned on each.
    """
    kinds: dict[tuple[str, str], list[str]] = {}
    faster, locked = [], []
    for name, its, by in zip(names, seen, used, strict=True):
        stated = stated_rate(its, by)
        kinds.setdefault((by or "", _describe(its, by)), []).append(name)
        others = {other: stated_rate(its, other) for other in (*its["interfaces"], *its["ports"]) if other != by}
        better = [other for other, its_rate in others.items() if stated and its_rate > _FASTER * stated]
        if better:
            faster.append(f"{name}: {by} carries messages, though {several(better)} is up")
        if its["ports"] and its["memlock"] != resource.RLIM_INFINITY and its["memlock"] < 1 << 30:
            locked.append(name)
    findings = []
    if len({by for by, _ in kinds if by}) > 1:
        said = "; ".join(f"{by or 'none of the kernel'} on {several(its)}" for (by, _), its in kinds.items())
        findings.append(
            warning(_TOPIC, f"nodes use different interfaces: {said}", "name the one that joins them, as below")
        )
    choose = "UCX_NET_DEVICES, FI_TCP_IFACE (MPICH) or --mca btl_tcp_if_include (Open MPI) names it; docs/multinode.md"
    if faster:
        findings.append(warning(_TOPIC, several(faster), f"if it joins the nodes, use it: {choose}"))
    if locked:
        findings.append(
            warning(
                _TOPIC,
                f"{several(locked)}: InfiniBand is active, but processes may lock little memory (ulimit -l)",
                "memlock unlimited in /etc/security/limits.conf and for the daemon of the scheduler",
            )
        )
    said = "; ".join(
        f"{what or 'no interface of the kernel counts messages'} on {several(its)}" for (_, what), its in kinds.items()
    )
    return [*findings, ok(_TOPIC, f"messages pass by {said}")]


def stated_rate(its: Mapping[str, Any], name: str | None) -> float:
    """Return the bytes per second that an interface or port states; 0.0 if it states none."""
    if name in its["interfaces"]:
        return (its["interfaces"][name]["speed"] or 0) * 1e6 / 8
    if name in its["ports"]:
        with suppress(ValueError, IndexError):
            return float(its["ports"][name]["rate"].split()[0]) * 1e9 / 8
    return 0.0


def _describe(its: Mapping[str, Any], name: str | None) -> str:
    if name in its["interfaces"]:
        one = its["interfaces"][name]
        speed = f"{one['speed'] / 1000:g} Gbit/s" if one["speed"] else "rate not stated"
        return f"{name} ({speed}, MTU {one['mtu']})"
    if name in its["ports"]:
        return f"{name} ({its['ports'][name]['layer']}, {its['ports'][name]['rate']})"
    return name or ""


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _address(name: str) -> str | None:
    """Return the IPv4 address of an interface, None if it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket, suppress(OSError):
        asked = fcntl.ioctl(any_socket, _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
        return socket.inet_ntoa(asked[20:24])
    return None
