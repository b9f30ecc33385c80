from sfb.doctor import Level, local


def test_a_process_alone():
    facts = local.facts()
    found = local.judge(facts)
    topics = [finding.topic for finding in found]
    assert {"placement", "processors", "/dev/shm"} <= set(topics)
    assert "scheduler" not in topics
    assert facts["host"] in found[0].found


def test_ranks_by_mpi():
    facts = local.facts()
    found = local.judge(facts, facts, hosts=["a", "b"], threads=1)
    assert {finding.topic for finding in found} & {"scheduler", "SLURM", "PBS"}
    assert any("1 on each of 2 nodes: a, b" in finding.found for finding in found)
    assert all(isinstance(finding.level, Level) for finding in found)
