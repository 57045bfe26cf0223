"""Hold the pinned requirements against known vulnerabilities, and say so if nobody could be asked.

pip-audit itself ends well if the service does not know a single package, as behind a mirror; here that is an error.
Run it with a Python that has pip-audit: `make audit` makes one (`tools/audit-constraints.txt`).

* `python tools/audit_requirements.py`
* `python tools/audit_requirements.py --service osv requirements-oldest.txt`
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from packaging.requirements import Requirement

REPOSITORY = Path(__file__).resolve().parents[1]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")  # pins come in pairs, and all are asked about


class Answer(NamedTuple):
    """What the service says.

    Attributes:
        asked: ``name version`` of every pin.
        findings: a line for each vulnerability.
        unanswered: the reason for each pin that the service says nothing of.
    """

    asked: list[str]
    findings: list[str]
    unanswered: list[str]


def pins(path: Path, python: str) -> list[str]:
    """The pins of a requirements file for a Python, without their markers.

    Raises:
        ValueError: if a line is no pin.
    """
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        text = line.partition("#")[0].strip()
        if not text:
            continue
        requirement = Requirement(text)
        if not str(requirement.specifier).startswith("=="):
            raise ValueError(f"{path.name} must hold pins (==), got {text!r}")
        if requirement.marker is None or requirement.marker.evaluate({"python_version": python}):
            found.append(f"{requirement.name}{requirement.specifier}")
    return found


def ask(wanted: Sequence[str], service: str) -> Answer:
    """Let pip-audit ask a service about pins.

    Raises:
        OSError: if it gives no answer; the message is its last words.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pins.txt"
        path.write_text("\n".join(wanted) + "\n", encoding="utf-8")
        words = ["--requirement", str(path), "--no-deps", "--disable-pip", "--vulnerability-service", service]
        command = [sys.executable, "-m", "pip_audit", *words, "--format", "json", "--progress-spinner", "off"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        return read_answer(json.loads(done.stdout))
    except ValueError as error:
        last = (done.stderr.strip() or done.stdout.strip() or f"status {done.returncode}").splitlines()[-1]
        raise OSError(f"the service {service} could not be asked: {last}") from error


def read_answer(content: Any) -> Answer:
    """pip-audit's JSON in our words."""
    answer = Answer([], [], [])
    for package in content["dependencies"]:
        if "skip_reason" in package:
            answer.asked.append(package["name"])
            answer.unanswered.append(package["skip_reason"])
            continue
        pin = f"{package['name']} {package['version']}"
        answer.asked.append(pin)
        for fault in package["vulns"]:
            names = " ".join([fault["id"], *fault.get("aliases", [])])
            fixed = ", ".join(fault.get("fix_versions", [])) or "none"
            answer.findings.append(f"{pin}: {names} (mended in: {fixed})")
    return answer


def main(words: Sequence[str] | None = None) -> int:
    """Ask about all pins; 0 if all are known and none has a known fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help="requirements files (default: requirements.txt)")
    parser.add_argument("--service", choices=("pypi", "osv"), default="pypi", help="who is asked (default: pypi)")
    args = parser.parse_args(words)
    files = args.files or [REPOSITORY / "requirements.txt"]
    try:
        wanted = sorted({pin for path in files for python in PYTHONS for pin in pins(path, python)}, key=str.lower)
        rounds = _without_doubles(wanted)
        answers = [ask(part, args.service) for part in rounds]
    except (OSError, ValueError) as error:
        sys.stderr.write(f"audit: {error}; nothing is known of the pins\n")
        return 1
    asked, findings, unanswered = ([line for answer in answers for line in answer[place]] for place in range(3))
    for line in findings:
        print(line)
    if len(asked) != len(wanted):
        unanswered.append(f"{len(wanted) - len(asked)} pins are missing in the answer")
    if unanswered:
        sys.stderr.write(
            f"audit: {args.service} says nothing of {len(unanswered)} of {len(wanted)} pins, so nothing is known of "
            f"them (the first: {unanswered[0]}); a mirror of the registry often lacks this service\n"
        )
    if findings:
        sys.stderr.write(f"audit: {len(findings)} known vulnerabilities; SECURITY.md says how each is answered\n")
    if findings or unanswered:
        return 1
    print(f"{len(wanted)} pins, no known vulnerability ({args.service})")
    return 0


def _without_doubles(wanted: Sequence[str]) -> list[list[str]]:
    """The pins in groups that name each package once, as one requirements file must."""
    groups: list[dict[str, str]] = []
    for pin in wanted:
        name = pin.partition("==")[0].lower()
        group = next((group for group in groups if name not in group), None)
        if group is None:
            groups.append(group := {})
        group[name] = pin
    return [list(group.values()) for group in groups]


if __name__ == "__main__":
    sys.exit(main())
