"""Damaged inputs of all that is parsed are taken, or refused by an error of the documented kind.

pytest tests/fuzz --hypothesis-profile=long      # 20 000 inputs each
python tests/fuzz/run_mutations.py --inputs 1000000
python tests/fuzz/run_atheris.py LIBSVM          # guided by coverage; needs atheris
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import mutate
from targets import targets

pytest.importorskip("pyarrow")


@pytest.fixture(scope="module")
def parsers(tmp_path_factory):
    return targets(tmp_path_factory.mktemp("fuzz"))


NAMES = (
    "size", "rate", "duration", "consistency", "topology", "environment", "sizes", "shapes", "bytes", "command line",
    "TOML", "profile", "checkpoint", "resealed checkpoint", "model", "contents of a model", "LIBSVM", "LIBSVM twice",
    "CSV", "bag of words", "ratings", "compressed text", "npz", "npy", "npz of ratings", "Parquet", "training run",
    "benchmark rows", "seal", "entries", "resealed entries", "credits", "relay", "replica", "block", "rounds", "ring",
    "failures",
)  # fmt: skip
MARKS = "0123456789.,:;-+_ eExkKMGTiBbpsdhm/\n\t\r#=[]{}'\"\u212a\u0661\u00b2"


def test_every_parser_has_a_name(parsers):
    assert {*parsers} == {*NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_inputs_are_taken_without_damage(parsers, name):
    taken = [not parsers[name](seed) for seed in parsers[name].seeds]
    assert any(taken)


@pytest.mark.parametrize("name", NAMES)
def test_damaged_inputs(parsers, name, request):
    parser = parsers[name]
    asked = request.config.getoption("--hypothesis-profile", None)
    damaged = st.builds(mutate, st.sampled_from(parser.seeds), st.randoms(use_true_random=False))

    @settings(settings.get_profile(asked or "few"))
    @given(st.one_of(st.binary(max_size=300), st.text(MARKS, max_size=60).map(str.encode), damaged, damaged, damaged))
    def parse(data):
        parser(data)

    parse()
