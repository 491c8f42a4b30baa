"""Runs `preflight.yml` or `validate.yml` and ends as its verdict says: 0 all is well, 1 failures, 2 it could not be looked at.

Prints the verdict (JSON) on stdout, Ansible's own words on stderr. Ansible's exit code says whether tasks failed, which is another
question. Example: ../.venv/bin/python verdict.py validate -l node2
"""

import json
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
NAMES = ("preflight", "validate")


def reached(report: Path) -> tuple[int, dict[str, object]]:
    """The exit code and the verdict of a report; one that is not there was not reached."""
    try:
        verdict = json.loads(report.read_text(encoding="utf-8"))
        return (0 if verdict["ok"] else 1 if verdict["failures"] else 2), verdict
    except (OSError, ValueError, KeyError, TypeError):
        said = "no verdict was reached; Ansible's own words above say why (an inventory that is not there? a machine's Python?)"
        return 2, {"ok": False, "failures": [], "unchecked": [said]}


def main() -> None:
    """The playbook's name, then anything that ansible-playbook takes."""
    if len(sys.argv) < 2 or sys.argv[1] not in NAMES:
        sys.exit(f"verdict: say which, {' or '.join(NAMES)}: python verdict.py validate")
    name, *arguments = sys.argv[1:]
    report = FOLDER.parent / "build" / "fleet" / f"{name}.json"
    report.parent.mkdir(parents=True, exist_ok=True)
    report.unlink(missing_ok=True)
    program = Path(sys.executable).parent / "ansible-playbook"
    subprocess.run([program, f"{name}.yml", *arguments, "-e", f"{name}_report={report}"], cwd=FOLDER, stdout=sys.stderr, check=False)
    code, verdict = reached(report)
    print(json.dumps(verdict, indent=1))
    sys.exit(code)


if __name__ == "__main__":
    main()
