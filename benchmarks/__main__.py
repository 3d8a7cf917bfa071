"""Measure the claims about speed on a CPU: `python -m benchmarks [NAME ...]`.

    python -m benchmarks                  # every claim, then the tables; about half an hour on two idle cores
    python -m benchmarks cold-start       # one of them
    python -m benchmarks --missing        # only those that have no result of this commit yet
    python -m benchmarks --list           # names, durations, what is compared

The public example scripts are run from the folder that HFTL_PUBLIC_SCRIPTS names. Each claim writes
`benchmarks/results/speed-NAME.json`, with machine, versions, date and commit, as soon as it is measured.
"""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import argparse
import json
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

from benchmarks.claims import CLAIMS, measure
from hftl.run_record import describe_environment

RESULTS = Path(__file__).parent / "results"


def is_measured(name: str, commit: str | None) -> bool:
    """Whether there is a result of this commit."""
    path = RESULTS / f"speed-{name}.json"
    return path.is_file() and json.loads(path.read_text())["environment"]["git_commit"] == commit


def main() -> int:
    """Measure, write each result at once, and then the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(CLAIMS))
    parser.add_argument("--missing", action="store_true", help="leave out what this commit has a result of")
    parser.add_argument("--list", action="store_true", help="measure nothing")
    options = parser.parse_args()
    if unknown := [name for name in options.names if name not in CLAIMS]:
        parser.error(f"no claim {unknown[0]!r}; there are {', '.join(CLAIMS)}")
    if options.list:
        for name, claim in CLAIMS.items():
            print(f"{name:17} {claim.seconds:4} s  {claim.measure.__doc__.splitlines()[0]}")
        return 0
    environment = describe_environment()
    names = options.names or list(CLAIMS)
    if options.missing:
        names = [name for name in names if not is_measured(name, environment["git_commit"])]
    failed = []
    for name in names:
        try:
            with tempfile.TemporaryDirectory() as folder:
                content = measure(name, Path(folder))
        except (RuntimeError, FileNotFoundError) as error:
            print(f"{name}: not measured: {error}", file=sys.stderr)
            failed.append(name)
            continue
        described = {"date": date.today().isoformat(), "command": f"python -m benchmarks {name}"}
        content = described | content | {"environment": environment}
        (RESULTS / f"speed-{name}.json").write_text(json.dumps(content, indent=1) + "\n")
        print(f"{name}: {content['ratio']:.2f} (goal {content['goal']}) in {content['measuring_seconds']:.0f} s")
    written = subprocess.run([sys.executable, Path(__file__).parent / "tables.py"], check=False)
    return 1 if failed else written.returncode


if __name__ == "__main__":
    sys.exit(main())
