"""What sfb does not do with what it reads, and what it depends on."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path for folder in ("sfb", "kernels") for path in (ROOT / folder).rglob("*.py"))

# Modules that make objects, and thereby run code, from bytes.
_UNPICKLERS = {"pickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}


def found(tree):
    """Yield what of a module's syntax may run code that comes from a file or a message."""
    for node in ast.walk(tree):
        match node:
            case ast.Import():
                yield from (f"line {node.lineno}: import {a.name}" for a in node.names if a.name in _UNPICKLERS)
            case ast.ImportFrom(module=str(module)) if module.split(".")[0] in _UNPICKLERS:
                yield f"line {node.lineno}: from {module}"
            case ast.keyword(arg="allow_pickle", value=ast.Constant(value=True)):
                yield f"line {node.value.lineno}: allow_pickle=True"
            case ast.Call(func=ast.Attribute(value=ast.Name(id="np"), attr="load"), keywords=keywords):
                if not any(each.arg == "allow_pickle" for each in keywords):
                    yield f"line {node.lineno}: np.load that leaves allow_pickle to NumPy"
            case ast.Call(func=ast.Name(id="eval" | "exec")):
                yield f"line {node.lineno}: {ast.unparse(node)}"


@pytest.mark.parametrize(
    "line",
    ["import pickle", "from pickle import loads", "np.load(f, allow_pickle=True)", "np.load(f)", "eval(text)"],
)
def test_what_is_looked_for_is_found(line):
    assert list(found(ast.parse(line)))


def test_nothing_is_unpickled_or_evaluated():
    bad = [f"{path.relative_to(ROOT)}: {each}" for path in SOURCES for each in found(ast.parse(path.read_text()))]
    assert not bad


def test_dependencies_are_few_and_bounded():
    text = (ROOT / "pyproject.toml").read_text()
    listed = re.search(r"\ndependencies = \[\n(.*?)\n\]", text, re.DOTALL)[1]
    wanted = [Requirement(line.strip().strip(",").strip('"')) for line in listed.splitlines()]
    assert len(wanted) <= 11
    for requirement in wanted:
        assert {each.operator for each in requirement.specifier} == {">=", "<"}, str(requirement)


CLEAN = (
    '{"dependencies": [{"name": "numpy", "version": "2.4.0", "vulns": []}, {"name": "sfb", "skip_reason": "local"}]}'
)
FAULT = '{"id": "PYSEC-1", "fix_versions": ["2.4.1"], "aliases": ["CVE-1"]}'
ANSWERS = {
    "clean": (f"echo '{CLEAN}' >$out", 0, "1 packages, 0 known faults"),
    "a fault": (
        f"echo '{CLEAN.replace('[]', f'[{FAULT}]')}' >$out; exit 1",
        1,
        "2.4.0: PYSEC-1 CVE-1; mended in 2.4.1",
    ),
    "no service": (
        "echo 'ERROR: ConnectionError: Failed to resolve api.example' >&2; exit 1",
        0,
        "skipped, no service",
    ),
    "broken": ("echo 'ERROR: no such option' >&2; exit 2", 1, "failed with exit code 2"),
}


@pytest.mark.parametrize("answer", ANSWERS)
def test_an_audit_tells_faults_from_a_service_that_is_away(tmp_path, answer):
    script, code, words = ANSWERS[answer]
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    program = tmp_path / "bin" / "pip-audit"
    program.write_text(f'#!/bin/bash\nwhile [ "$1" != --output ]; do shift; done\nout=$2\n{script}\n')
    program.chmod(0o755)
    command = ["bash", ROOT / "mpirun_scripts" / "audit.sh", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stderr
    assert words in done.stdout
