"""Looks for known vulnerabilities of the installed packages, where a service that knows them answers.

Options are pip-audit's own. Where the service does not answer, that is said in a line, and nothing fails: the check
must pass without a network too. KNOWN names what has no fix yet, and why it does no harm here.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

KNOWN: dict[str, str] = {}  # id of the vulnerability -> why it does no harm here
_NO_ANSWER = re.compile(
    r"^(?:requests\.exceptions\.\w+|pip_audit\._service\.interface\.(?:ServiceError|ConnectionError)"
    r"|ERROR:pip_audit\._cli:Could not connect).*$",
    re.MULTILINE,
)


def main() -> int:
    """Run pip-audit and return its verdict."""
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "found.json"
        command = [sys.executable, "-m", "pip_audit", "--vulnerability-service", "osv", "--timeout", "15"]
        command += ["--skip-editable", "--progress-spinner", "off", "--format", "json", "--output", str(found)]
        for name in KNOWN:
            command += ["--ignore-vuln", name]
        done = subprocess.run([*command, *sys.argv[1:]], capture_output=True, text=True, check=False)
        if not found.is_file():
            return _nothing(done)
        packages = json.loads(found.read_text())["dependencies"]
    bad = [(package, fault) for package in packages for fault in package.get("vulns", ())]
    for package, fault in bad:
        fixed = ", ".join(fault["fix_versions"]) or "no version yet"
        names = ", ".join((fault["id"], *fault.get("aliases", ())))
        sys.stdout.write(f"audit: {package['name']} {package['version']} has {names}; fixed in {fixed}\n")
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    without = f", not {', '.join(skipped)}" if skipped else ""
    sys.stdout.write(
        f"audit: {len(packages) - len(skipped)} packages were looked up{without}; known faults: {len(bad)}\n"
    )
    return 1 if bad else done.returncode


def _nothing(done: subprocess.CompletedProcess[str]) -> int:
    """Tell why there is no result: a service that does not answer is no fault of ours, all else is."""
    why = _NO_ANSWER.search(done.stderr)
    if why is None:
        sys.stdout.write(f"audit: pip-audit failed with exit code {done.returncode}\n{done.stderr}")
        return done.returncode or 1
    host = re.search(r"host='([\w.-]+)'", why[0])
    service = host[1] if host else "the vulnerability service"
    sys.stdout.write(f"audit: NOT DONE, {service} does not answer; `make audit` does it where it does\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
