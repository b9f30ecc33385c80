import resource

import pytest

from sfb.doctor import Level, network


def node(interfaces=("eth0",), speeds=(10000,), **others):
    return {
        "interfaces": {
            name: {"speed": speed, "mtu": 1500, "address": "10.0.0.1"}
            for name, speed in zip(interfaces, speeds, strict=True)
        },
        "ports": {},
        "memlock": resource.RLIM_INFINITY,
        **others,
    }


def judge(seen, used):
    return network.judge([f"node{i}" for i in range(len(seen))], seen, used)


def test_one_interface():
    (finding,) = judge([node()] * 2, ["eth0"] * 2)
    assert finding.level is Level.OK
    assert finding.found == "messages pass by eth0 (10 Gbit/s, MTU 1500) on node0, node1"
    (finding,) = judge([node(speeds=(None,))] * 2, ["eth0"] * 2)
    assert "rate not stated" in finding.found


def test_an_interface_that_is_slower_than_another():
    slow, ok = judge([node(("eth0", "eth1"), (1000, 25000))] * 2, ["eth0"] * 2)
    assert slow.level is Level.WARNING
    assert "node0: eth0 carries messages, though eth1 is up" in slow.found
    assert "UCX_NET_DEVICES" in slow.advice
    assert ok.level is Level.OK
    assert len(judge([node(("eth0", "eth1"), (1000, 25000))] * 2, ["eth1"] * 2)) == 1


def test_different_interfaces():
    different, _ = judge([node(), node(("docker0",))], ["eth0", "docker0"])
    assert different.level is Level.WARNING
    assert "eth0 on node0; docker0 on node1" in different.found


def test_infiniband():
    port = {"mlx5_0/1": {"rate": "200 Gb/sec (4X HDR)", "layer": "InfiniBand"}}
    (finding,) = judge([node(ports=port)] * 2, ["mlx5_0/1"] * 2)
    assert "mlx5_0/1 (InfiniBand, 200 Gb/sec (4X HDR))" in finding.found
    unused, _ = judge([node(ports=port)], ["eth0"])
    assert "though mlx5_0/1 is up" in unused.found
    locked, _ = judge([node(ports=port, memlock=1 << 16)], ["mlx5_0/1"])
    assert "ulimit -l" in locked.found
    assert network.stated_rate(node(ports=port), "mlx5_0/1") == 25e9
    assert network.stated_rate(node(), "eth0") == 1.25e9
    assert network.stated_rate(node(), None) == 0.0


def test_messages_that_no_interface_counts():
    (finding,) = judge([node()] * 2, [None] * 2)
    assert finding.level is Level.OK
    assert "no interface of the kernel counts messages" in finding.found


@pytest.mark.parametrize(("moved", "expected"), [(1000, "eth0"), (10**6, None), (0, None)])
def test_carrier(moved, expected):
    assert network.carrier({"eth0": 100, "lo": 5}, {"eth0": 1200, "lo": 5, "eth1": 40}, moved) == expected


def test_facts_and_counters(tmp_path):
    for name, state, speed in (("eth0", "up", "1000"), ("eth1", "down", "10000"), ("veth", "unknown", "-1")):
        (tmp_path / "sys/class/net" / name).mkdir(parents=True)
        for file, text in (("operstate", state), ("speed", speed), ("mtu", "9000")):
            (tmp_path / "sys/class/net" / name / file).write_text(f"{text}\n")
    port = tmp_path / "sys/class/infiniband/mlx5_0/ports/1"
    (port / "counters").mkdir(parents=True)
    for file, text in (("state", "4: ACTIVE"), ("rate", "100 Gb/sec"), ("link_layer", "InfiniBand")):
        (port / file).write_text(f"{text}\n")
    for way, words in (("rcv", 10), ("xmit", 20)):
        (port / "counters" / f"port_{way}_data").write_text(f"{words}\n")
    (tmp_path / "proc/net").mkdir(parents=True)
    (tmp_path / "proc/net/dev").write_text(
        "Inter-|   Receive  |  Transmit\n face |bytes packets\n  eth0: 100 1 0 0 0 0 0 0 30 1 0 0 0 0 0 0\n"
    )
    facts = network.facts(tmp_path)
    assert {name: its["speed"] for name, its in facts["interfaces"].items()} == {"eth0": 1000, "veth": None}
    assert facts["ports"] == {"mlx5_0/1": {"rate": "100 Gb/sec", "layer": "InfiniBand"}}
    assert network.counters(tmp_path) == {"eth0": 130, "mlx5_0/1": 120}
    assert network.facts(tmp_path / "missing")["interfaces"] == {}
    assert network.counters(tmp_path / "missing") == {}


def test_the_kernel_counts_bytes():
    assert "lo" in network.counters()
