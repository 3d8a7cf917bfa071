"""The verbs of a comparison: compare, report."""

import argparse
import json
import shlex
from pathlib import Path

from hftl.cli.words import Parser, configure_logging, default_config, print_lines, quiet_libraries
from hftl.errors import UserError
from hftl.runtime.cpu import limit_spinning
from hftl.runtime.gc_pause import importing


def compare(argv: list[str]) -> None:
    """`hftl compare`: run what is missing of an experiment and write its report."""
    limit_spinning()
    options = _parse_compare(argv)
    configure_logging()
    with importing():
        from hftl.compare import study

    quiet_libraries()
    file = Path(options.file or default_config("compare-wordnet-quick.yaml"))
    folder = Path(options.output_dir or Path("runs") / file.stem)
    names = ("jobs", "engine", "keep_models", "accelerate_config")
    command = shlex.join(["hftl", "compare", *argv])
    campaign = study.open_study(
        study.StudyOptions(file, folder, command=command, **{name: getattr(options, name) for name in names})
    )
    if options.status:
        print_lines(study.describe_status(campaign))
        return
    if options.dry_run:
        print_lines(study.predict_study(campaign).lines())
        return
    print(
        f"{campaign.experiment.name}: {study.describe_data(campaign.facts)}; {campaign.num_workers} cells side by side"
    )
    try:
        study.run_study(campaign, command)
    finally:  # a campaign that is cut short has a report too, which says what is missing
        if (folder / "results.json").is_file():
            _print_verdict(folder)


def _parse_compare(argv: list[str]) -> argparse.Namespace:
    parser = Parser(prog="hftl compare", description=compare.__doc__, allow_abbrev=False)
    parser.add_argument("file", nargs="?", help="experiment file (.yaml); default: an example on bundled text")
    parser.add_argument("--output_dir", help="campaign folder; default: runs/NAME; the same folder goes on")
    parser.add_argument(
        "--dry-run", "--dry_run", action="store_true", help="time a few steps of each arm, predict all"
    )
    parser.add_argument("--status", action="store_true", help="say how far the campaign is, run nothing")
    parser.add_argument("--jobs", type=int, help="cells side by side; default: one on each accelerator or core")
    parser.add_argument("--engine", default="local", help="local, or ray for a cluster with a shared folder")
    parser.add_argument("--keep_models", action="store_true", help="keep the weights of every cell")
    parser.add_argument("--accelerate_config", help="start each cell by `accelerate launch` with this file")
    return parser.parse_args(argv)


def report(argv: list[str]) -> None:
    """`hftl report`: the report again, from `results.json`."""
    if len(argv) != 1 or argv[0] in ("-h", "--help"):
        print("usage: hftl report FOLDER\n\nFOLDER: what `hftl compare --output_dir FOLDER` wrote.")
        if len(argv) != 1:
            raise UserError("Give one folder of a comparison.")
        return
    _print_verdict(Path(argv[0]))


def _print_verdict(folder: Path) -> None:
    from hftl.report.html import write_report

    page = write_report(folder)
    verdict = json.loads((folder / "results.json").read_text(encoding="utf-8"))["verdict"]
    print("\n".join(["", verdict["headline"], *(f"  {line}" for line in verdict["lines"])]))
    if verdict["next_experiment"]:
        print(f"  Next: {verdict['next_experiment']}")
    print(f"report: {page}")
