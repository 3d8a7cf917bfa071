"""What does the short version say? The report as Markdown, for a repository or a merge request; drawings are links.

The order is that of the page and the numbers are the same. It must not know how a number was made.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from hftl.report import tables
from hftl.report.escape import escape_line
from hftl.report.figures import Drawing
from hftl.report.formats import ScoreFormat, format_any, format_count, format_seconds, is_number
from hftl.report.style import ArmStyle, Results, build_styles, clean

SIGNS = {"decided": "✓", "undecided": "?", "blocked": "✕"}
MAX_ARMS_BESIDE = 8  # a wider table of classes is left to the page
Styles = Mapping[str, ArmStyle]


def render_markdown(results: Results, drawings: Mapping[str, Drawing], figures_folder: str) -> str:
    """The report as text; its figures are looked for in `figures_folder` beside it."""
    styles = build_styles(results)
    images = {
        name: [
            f"![{escape(drawing.title)}: {escape(clean(drawing.description, 300))}]({figures_folder}/{name}.png)",
            "",
        ]
        for name, drawing in drawings.items()
    }
    lines = [
        *_write_verdict(results),
        *_write_curves(results, styles, images),
        "## Score against cost", "", *images.get("score-against-cost", ["No cost is known yet.", ""]),
        *_write_pairs(results, styles, images),
        *_write_cost(results, styles),
        *_write_errors(results, styles, images),
        *_write_parity(results),
        *_write_gaps(results, styles),
        *_write_origin(results),
    ]  # fmt: skip
    return "\n".join(lines).strip() + "\n"


def escape(value: Any) -> str:
    """Text that stands for itself: no markup, no HTML, no link, no new line."""
    return escape_line(format_any(value))


def write_table(table: tables.Table) -> list[str]:
    """A GitHub table; numbers stand on the right."""
    shown = [position for position, column in enumerate(table.columns) if column.title]  # bars have no title
    columns = [table.columns[position] for position in shown]
    head = [escape(column.title) for column in columns]
    rule = ["---:" if column.is_number else "---" for column in columns]
    rows = [[escape(row[position].text) for position in shown] for row in table.rows]
    return [*(f"| {' | '.join(line)} |" for line in (head, rule, *rows)), ""]


def _write_list(items: Sequence[Any]) -> list[str]:
    return [*(f"- {escape(item)}" for item in items), ""]


def _write_verdict(results: Results) -> list[str]:
    verdict, question = results["verdict"], results["question"]
    status = verdict["status"] or "no verdict"
    lines = [f"# {escape(verdict['headline'] or 'No verdict yet')}", ""]
    lines += [
        f"**{SIGNS.get(status, '?')} {escape(status)}** · {escape(results['name'])} · {escape(results['date'])}",
        "",
    ]
    lines += _write_list(verdict["lines"]) if verdict["lines"] else ["The results hold no further words.", ""]
    if verdict["next_experiment"]:
        lines += [f"**Next.** {escape(verdict['next_experiment'])}", ""]
    facts = f"Data {escape(question['data'])}; checkpoint {escape(question['checkpoint'])}; "
    facts += f"{format_count(question['num_test_examples'])} test rows; {len(results['seeds'])} seeds; margin "
    return [*lines, f"{facts}{ScoreFormat.of(results).write_bare(question['margin'])}.", ""]


def _write_curves(results: Results, styles: Styles, images: Mapping[str, list[str]]) -> list[str]:
    lines = ["## Learning curves", "", *images.get("learning-curves", ["No cell has a score yet.", ""])]
    table = tables.build_scores(results, styles)
    return lines + (write_table(table) if table.rows else [])


def _write_pairs(results: Results, styles: Styles, images: Mapping[str, list[str]]) -> list[str]:
    lines, found = ["## Who beats whom", ""], tables.build_pairs(results, styles)
    if not found:
        return [*lines, "No two arms have a common seed yet, so nothing was compared.", ""]
    return [*lines, *images.get("matrix", []), f"{found[0].caption}:", "", *write_table(found[0])]


def _write_cost(results: Results, styles: Styles) -> list[str]:
    lines, cost = ["## What it cost", ""], results["cost"]
    if is_number(cost["wall_seconds"]):
        lines += [f"The comparison took {format_seconds(cost['wall_seconds'])} seconds.", ""]
    buckets, money, targets = (
        tables.build_buckets(results), tables.build_money(results), tables.build_targets(results, styles)
    )  # fmt: skip
    for table, empty in (
        (buckets, "Where the time went is not recorded."),
        (money, "There is no money in these results."),
        (targets, "There is no cost to reach a target score."),
    ):
        lines += [f"{table.caption}:", "", *write_table(table)] if table.rows else [empty, ""]
    sentences = [row["sentence"] for row in (*results["crossovers"], *results["multipliers"]) if row["sentence"]]
    lines += ["## Crossovers and what a label is worth", ""]
    return lines + (_write_list(sentences) if sentences else ["Nothing can be said about this yet.", ""])


def _write_errors(results: Results, styles: Styles, images: Mapping[str, list[str]]) -> list[str]:
    lines, table = ["## Where the errors are", ""], tables.build_per_class(results, styles)
    if table.rows and len(table.columns) <= MAX_ARMS_BESIDE + 2:
        lines += [f"{table.caption}:", "", *write_table(table)]
    elif not table.rows:
        lines += ["There are no scores of single classes.", ""]
    return [*lines, *images.get("calibration", ["Calibration was not recorded.", ""])]


def _write_parity(results: Results) -> list[str]:
    parity, lines = results["parity"], ["## What was held equal", ""]
    if parity["is_blocked"]:
        lines += ["**✕ The arms are not comparable as they were run.**", ""]
    lines += (
        _write_list(parity["equal"]) if parity["equal"] else ["Nothing is listed that was checked to be equal.", ""]
    )
    flags = [
        f"- **{escape(flag['severity'])}**: {escape(flag['what'])} ({escape(flag['arms'] or 'all arms')})"
        + (f". {escape(flag['detail'])}" if flag["detail"] else "")
        for flag in parity["flags"]
    ]
    tuning = results["question"]["tuning_sentence"] or "The results do not say what was tuned."
    reads = results["test_reads"]["sentence"] or "The results do not say how often the test set was read."
    return [*lines, *(flags or ["Nothing was flagged."]), "", escape(tuning), "", escape(reads), ""]


def _write_gaps(results: Results, styles: Styles) -> list[str]:
    lines = ["## Failures and missing cells", ""]
    for table, empty in (
        (tables.build_failures(results, styles), "No cell failed."),
        (tables.build_missing(results, styles), "No cell is missing."),
    ):
        lines += write_table(table) if table.rows else [empty, ""]
    return lines


def _write_origin(results: Results) -> list[str]:
    environment = results["environment"]
    names = ("cpu", "num_threads", "device", "platform", "python", "git_commit", "packages")
    command = " ".join(str(results["command"] or "").split())
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", command)), default=0))
    lines = ["## How this was made", ""]
    lines += [fence, command, fence, ""] if command else ["The command was not recorded.", ""]
    return lines + _write_list([f"{name.replace('_', ' ')}: {format_any(environment[name])}" for name in names])
