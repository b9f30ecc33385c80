from sfb.doctor import Level, processors

INTEL = {"machine": "x86_64", "model": "Xeon 6", "sets": ["avx2", "avx512f"]}
AMD = {"machine": "x86_64", "model": "EPYC 7", "sets": ["avx2"]}


def test_equal_processors():
    (finding,) = processors.judge([INTEL] * 2, ["a", "b"])
    assert finding.level is Level.OK
    assert finding.found == "all nodes have Xeon 6, up to avx512f"


def test_different_processors():
    (finding,) = processors.judge([INTEL, INTEL, AMD], ["a", "b", "c"])
    assert finding.level is Level.WARNING
    assert "a, b: Xeon 6; c: EPYC 7; c without avx512f" in finding.found


def test_facts(tmp_path):
    path = tmp_path / "cpuinfo"
    path.write_text(
        "processor\t: 0\nmodel name\t: EPYC\nflags\t\t: fpu avx avx2 fma\n\nprocessor\t: 1\nflags\t\t: avx512f\n"
    )
    facts = processors.facts(path)
    assert facts["model"] == "EPYC"
    assert facts["sets"] == ["avx", "fma", "avx2"]
    path.write_text("processor : 0\nFeatures : fp asimd sve\nCPU implementer : 0x41\nCPU part : 0xd40\n")
    assert processors.facts(path)["model"] == "0x41 0xd40"
    assert processors.facts(path)["sets"] == ["asimd", "sve"]
    assert processors.facts(tmp_path / "missing")["sets"] == []
