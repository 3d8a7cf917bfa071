"""The verbs that look before anything is trained: estimate, audit, adapters."""

import json
import logging
from pathlib import Path

from hftl.cli.words import print_lines, quiet_libraries, take_flag
from hftl.errors import UserError


def estimate(argv: list[str]) -> None:
    """`hftl estimate`: what each mode would take of memory, time and money; exit code 2 if it cannot fit."""
    if {"-h", "--help"} & set(argv) or not argv:
        print("usage: hftl estimate [CONFIG.yaml] [--flag value ...] [--gpu h100] [--probe] [--output_file FILE.json]")
        print("The words of `hftl train`; of the model nothing but its configuration is read. docs/cost.md says more.")
        return
    argv, gpu = take_flag(argv, "--gpu")
    argv, output = take_flag(argv, "--output_file")
    is_probed, argv = "--probe" in argv, [word for word in argv if word != "--probe"]
    logging.basicConfig(level=logging.ERROR, format="%(message)s")
    from hftl.config import parse_args

    args = parse_args(argv)
    from hftl.preview.estimate import as_dict, check_chosen
    from hftl.preview.estimate import estimate as estimate_modes
    from hftl.preview.render import render, render_probe

    quiet_libraries()
    if is_probed and args.model.mode is None:
        raise UserError("--probe makes steps of one mode: give --mode.")
    found = estimate_modes(args, gpu)
    print_lines(render(found))
    content = as_dict(found)
    if is_probed:
        from hftl.preview.probe import probe

        measured = probe(argv, args)
        content["probe"] = {"seconds": measured.seconds, "memory": measured.memory}
        print_lines(render_probe(found, measured.seconds, measured.memory))
    if output is not None:
        Path(output).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        print(f"saved in {output}")
    check_chosen(found)


def audit(argv: list[str]) -> None:
    """`hftl audit`: what is wrong with the data of a run; exit code 2 if it would be refused."""
    argv, output = take_flag(argv, "--output_file")
    if not argv:
        raise UserError("Name the data as for `hftl train`: a .yaml file, --dataset or --train_file.")
    logging.basicConfig(level=logging.ERROR, format="%(message)s")  # what is found is in the report
    from hftl.config import parse_args

    args = parse_args(argv)
    from hftl.preview.audit import audit_data, refuse_errors, render_audit, write_audit

    quiet_libraries()
    report = audit_data(args)
    print_lines(render_audit(report))
    if output is not None:
        write_audit(report, Path(output))
        print(f"saved in {output}")
    refuse_errors(report)


def adapters(argv: list[str]) -> None:
    """`hftl adapters`: the methods of --mode peft, what each changes, its rate and where it comes from."""
    if argv:
        print("usage: hftl adapters")
        if argv[0] not in ("-h", "--help"):
            raise UserError("`hftl adapters` takes no words.")
        return
    from hftl.models.adapters import describe_adapters

    table = describe_adapters()
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
