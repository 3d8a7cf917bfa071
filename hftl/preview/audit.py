"""What is wrong with these data? The audit of a run without the run: every check, however many rows, and a report.

This module must not train, and must not drop a row: it says what a run with the same flags would do.
"""

import dataclasses
import json
import textwrap
import time
from pathlib import Path
from typing import Any

from hftl.config import Arguments
from hftl.data.findings import KINDS, parse_policies
from hftl.errors import UserError
from hftl.models.length import load_processor
from hftl.runtime.files import redact, write_atomically
from hftl.tasks import build_task
from hftl.training_data import Examples, audit_lengths, describe_source, load_examples, prepare_examples

WIDTH = 100  # characters of a line of the report


def audit_data(args: Arguments) -> dict[str, Any]:
    """Load, check and describe the rows that a run with these arguments would use.

    Returns:
        What `--output_file` holds: source, fingerprints, seconds, and the report as in `run.json`, each finding with
        the policy that a run would follow.

    Raises:
        UserError: the data cannot be loaded at all.
    """
    started = time.perf_counter()
    policies = parse_policies(args.data.audit)
    # Nothing is refused or dropped here, so that one look finds everything.
    names = [kind for kind in KINDS if kind != "bad_rows"]
    data = dataclasses.replace(args.data, on_bad_rows="skip", audit=[f"{name}=note" for name in names])
    task = build_task(data.task)
    examples = load_examples(data, task, args.training.seed, is_thorough=True)
    if args.model.model_name_or_path and task.modality != "image":
        processor = load_processor(args.model, task, data)
        processor = task.fit_processor(processor, examples.splits["train"], data)
        rows = prepare_examples(examples, task, processor, data)
        audit_lengths(examples, task.describe_rows(rows, processor, data), data)
    for finding in examples.audit.findings:
        is_bad = finding.kind == "bad_rows"
        finding.policy = (
            {"error": "error", "skip": "drop"}[args.data.on_bad_rows] if is_bad else policies[finding.kind]
        )
    examples.audit.findings.sort(key=lambda finding: list(KINDS).index(finding.kind))
    return _describe(examples, describe_source(args.data), time.perf_counter() - started)


def _describe(examples: Examples, source: str, seconds: float) -> dict[str, Any]:
    return {
        "source": source,
        "fingerprints": examples.fingerprints,
        "problem_type": examples.labels.problem_type,
        "num_classes": examples.labels.num_labels,
        "seconds": round(seconds, 1),
        **examples.audit.as_dict(),
    }


def write_audit(report: dict[str, Any], path: Path) -> None:
    """Write the report as JSON."""
    text = json.dumps(report, indent=2, ensure_ascii=False, default=str)
    write_atomically(path, (redact(text) + "\n").encode())


def render_audit(report: dict[str, Any]) -> list[str]:
    """The report for a terminal: a line for each finding, worst first, and under it what to do and two rows."""
    sizes = ", ".join(f"{split} {count:,}" for split, count in report["num_rows"].items())
    lines = [f"{report['source']}: {sizes} rows, checked in {report['seconds']:.0f} s", ""]
    findings = report["findings"]
    table = [[f["policy"], f["kind"], _count(f, report["num_rows"])] for f in findings]
    widths = [max((len(row[column]) for row in table), default=0) for column in range(2)]
    indent = " " * (widths[0] + 2)
    for finding, row in zip(findings, table, strict=True):
        lines.append(f"{row[0]:{widths[0]}}  {row[1]:{widths[1]}}  {row[2]}".rstrip())
        lines += textwrap.wrap(_advise(finding), WIDTH, initial_indent=indent, subsequent_indent=indent)
    lines += [] if findings else ["Nothing suspicious was found."]
    if (difference := report["detectable_difference"]) is not None:
        lines += ["", *textwrap.wrap(_say_difference(report["num_rows"]["test"], difference), WIDTH)]
    return lines


def _count(finding: dict[str, Any], num_rows: dict[str, int]) -> str:
    """`test 12 of 10,000 (0.1 %)` for each split; of a split whose bad rows are gone, the number of them alone."""
    parts = []
    for split, count in finding["counts"].items():
        total = num_rows[split] + (count if finding["kind"] == "bad_rows" else 0)
        percent = 100 * count / total
        shown = f"{percent:.2g}" if percent < 99.5 else f"{percent:.0f}"  # of 100, `.2g` makes 1e+02
        parts.append(f"{split} {count:,} of {total:,} ({shown} %)")
    return ", ".join(parts)


def _advise(finding: dict[str, Any]) -> str:
    kind = finding["kind"]
    parts = [f"{'; '.join(finding['examples'][:2])}." if finding["examples"] else "", KINDS[kind].meaning]
    if finding["num_droppable"] and finding["policy"] != "drop":
        parts.append(f"`--audit {kind}=drop` takes {finding['num_droppable']:,} rows out of train.")
    return " ".join(filter(None, parts))


def _say_difference(num_rows: int, difference: float) -> str:
    return (
        f"{num_rows:,} test rows show a difference in accuracy between two models of {100 * difference:.1f} points or "
        "more (McNemar's test, 80 % power, if the two differ on one answer in ten)."
    )


def refuse_errors(report: dict[str, Any]) -> None:
    """End with the exit code of bad data where a run would.

    Raises:
        UserError: the policy of something found is `error`.
    """
    if errors := [finding["kind"] for finding in report["findings"] if finding["policy"] == "error"]:
        raise UserError(f"A run on these data would be refused for: {', '.join(errors)}.")
