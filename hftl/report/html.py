"""What does the page look like? Reads `results.json` and writes `report.html`, `report.md` and the figures.

One file that needs no network: drawings and style are inside it. It must not know how a number was made.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from hftl.report import tables
from hftl.report.figures import FIGURES, Drawing, draw_figures
from hftl.report.formats import (
    ScoreFormat,
    format_any,
    format_count,
    format_level,
    format_money,
    format_seconds,
    is_number,
)
from hftl.report.markdown import render_markdown
from hftl.report.reading import read_results
from hftl.report.style import COLOURS, build_styles
from hftl.runtime.files import write_atomically

TEMPLATES = Path(__file__).with_name("templates")
PAGE_FILE, MARKDOWN_FILE, FIGURES_FOLDER = "report.html", "report.md", "figures"
STATUSES = {"decided": ("✓", "good"), "undecided": ("?", "muted"), "blocked": ("✕", "bad")}
SEVERITIES = {"blocks": ("✕", "bad"), "warns": ("▲", "warn"), "notes": ("·", "muted")}


def write_report(folder: Path) -> Path:
    """Write the report of a comparison beside its `results.json`.

    Args:
        folder: what `hftl compare --output_dir` wrote.

    Returns:
        The path of `report.html`; `report.md` and `figures/*.png` lie beside it.

    Raises:
        UserError: `results.json` is missing, broken, or of another schema.
    """
    folder = Path(folder)
    results = read_results(folder)
    drawings = draw_figures(results)
    for name in FIGURES:
        path = folder / FIGURES_FOLDER / f"{name}.png"
        if name in drawings:
            write_atomically(path, drawings[name].png)
        else:
            path.unlink(missing_ok=True)  # of an earlier report
    text = render_markdown(results, drawings, FIGURES_FOLDER)
    write_atomically(folder / MARKDOWN_FILE, text.encode("utf-8", "replace"))
    return write_atomically(folder / PAGE_FILE, render_page(results, drawings).encode("utf-8", "replace"))


def render_page(results: Mapping[str, Any], drawings: Mapping[str, Drawing]) -> str:
    """The page as text; the same results give the same text."""
    styles = build_styles(results)
    return _load_template().render(
        r=results,
        style=(TEMPLATES / "report.css").read_text(encoding="utf-8").replace("/*COLOURS*/", _write_colours()),
        drawings={name: drawing.svg for name, drawing in drawings.items()},
        scores=ScoreFormat.of(results),
        level=format_level(results["question"]["alpha"]),
        styles=styles,
        status=STATUSES.get(results["verdict"]["status"], ("?", "muted")),
        severities=SEVERITIES,
        tables=build_tables(results),
    )


@cache
def _load_template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters.update(
        count=format_count, seconds=format_seconds, money=format_money, text=format_any, metric=_name_metric
    )
    environment.tests["numeric"] = is_number
    return environment.get_template("report.html")


def build_tables(results: Mapping[str, Any]) -> dict[str, Any]:
    """Name in the template -> table, or a list of tables."""
    styles = build_styles(results)
    with_styles = {
        "scores": tables.build_scores, "summary": tables.build_summary, "pairs": tables.build_pairs,
        "targets": tables.build_targets, "curves": tables.build_curves, "per_class": tables.build_per_class,
        "failures": tables.build_failures, "missing": tables.build_missing, "arms": tables.build_arms,
        "cells": tables.build_cells,
    }  # fmt: skip
    plain = {"buckets": tables.build_buckets, "money": tables.build_money, "confusion": tables.build_confusion}
    return {name: build(results, styles) for name, build in with_styles.items()} | {
        name: build(results) for name, build in plain.items()
    }


def _write_colours() -> str:
    """The CSS variables of both themes."""
    light = "".join(f"--{role}:{pair[0]};" for role, pair in COLOURS.items())
    dark = "".join(f"--{role}:{pair[1]};" for role, pair in COLOURS.items())
    return f":root{{{light}}}\n@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}"


def _name_metric(metric: str | None) -> str:
    return str(metric or "score").replace("_", " ")
