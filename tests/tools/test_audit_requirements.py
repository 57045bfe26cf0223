"""An audit that nobody answered does not end well."""

import json
import re
from pathlib import Path

import pytest

from tools.audit_requirements import main, pins, read_answer

REPOSITORY = Path(__file__).resolve().parents[2]
FAULT = {"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["1.1"], "description": "x"}


@pytest.fixture
def service(tmp_path, monkeypatch):
    """Stands for pip-audit: a module of its name that answers as its table says."""
    table = {}
    module = tmp_path / "module" / "pip_audit.py"
    module.parent.mkdir()
    module.write_text(
        "import json, sys\n"
        "table = json.load(open(__file__ + '.json'))\n"
        "path = sys.argv[sys.argv.index('--requirement') + 1]\n"
        "found = [line.strip().split('==') for line in open(path) if line.strip()]\n"
        "assert len({name for name, _ in found}) == len(found), 'a package twice'\n"
        "if 'crash' in table: sys.exit('socket.gaierror: no such host')\n"
        "known = [{'name': n, 'version': v, 'vulns': []} | table.get(n, {}) for n, v in found]\n"
        "print(json.dumps({'dependencies': [p for p in known if not p.get('gone')]}))\n"
        "sys.exit(any(p['vulns'] for p in known))\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(module.parent))

    def answer(**more):
        table.update(more)
        Path(f"{module}.json").write_text(json.dumps(table))

    answer()
    return answer


@pytest.fixture
def requirements(tmp_path):
    path = tmp_path / "requirements.txt"
    path.write_text(
        '# pins\na==1.0; python_version >= "3.11"\na==0.9; python_version < "3.11"  # old\n\nb==2.0\nc==3.0\n'
    )
    return str(path)


def test_pins_of_all_pythons_are_asked_about(service, requirements, capsys):
    assert main([requirements]) == 0
    assert capsys.readouterr().out == "4 pins, no known vulnerability (pypi)\n"


def test_a_finding_is_told(service, requirements, capsys):
    service(b={"vulns": [FAULT]})
    assert main([requirements]) == 1
    told = capsys.readouterr()
    assert told.out == "b 2.0: PYSEC-1 CVE-1 (mended in: 1.1)\n"
    assert "1 known vulnerabilities" in told.err


@pytest.mark.parametrize("silent", [{"skip_reason": "not found"}, {"gone": True}])
def test_a_pin_that_nobody_knows_is_an_error(service, requirements, capsys, silent):
    service(c=silent)
    assert main([requirements]) == 1
    told = capsys.readouterr()
    assert "pypi says nothing of 1 of 4 pins, so nothing is known of them" in told.err
    assert told.out == ""


def test_a_service_that_is_not_there_is_an_error(service, requirements, capsys):
    service(crash={})
    assert main(["--service", "osv", requirements]) == 1
    said = "audit: the service osv could not be asked: socket.gaierror: no such host; nothing is known of the pins\n"
    assert capsys.readouterr().err == said


def test_a_python_without_pip_audit_says_so(requirements, capsys, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "")
    assert main([requirements]) == 1
    assert "No module named pip_audit" in capsys.readouterr().err


def test_what_is_no_pin_is_refused(tmp_path, capsys):
    (tmp_path / "r.txt").write_text("a>=1\n")
    assert main([str(tmp_path / "r.txt")]) == 1
    assert "r.txt must hold pins (==), got 'a>=1'" in capsys.readouterr().err


def test_the_projects_own_files_are_pins():
    for name in ("requirements.txt", "requirements-oldest.txt"):
        assert len(pins(REPOSITORY / name, "3.10")) > 15
    tools = (REPOSITORY / "tools/audit-constraints.txt").read_text()
    assert re.search(r"^pip-audit==\S+$", tools, re.MULTILINE)
    assert all("==" in line for line in tools.splitlines() if not line.startswith("#"))


def test_a_round_of_findings_is_read():
    answer = read_answer({"dependencies": [{"name": "a", "version": "1", "vulns": [{"id": "X", "fix_versions": []}]}]})
    assert answer.findings == ["a 1: X (mended in: none)"]
