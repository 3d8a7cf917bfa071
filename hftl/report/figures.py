"""What is drawn? Four figures of results.json, each as SVG for the page and as PNG for Markdown.

Both pictures come from the same code and differ in their colours only. Every number drawn is one of results.json:
nothing is averaged or estimated here.
"""

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from hftl.report.canvas import WIDTH, build_axes, plain_matplotlib, tone_down, write_png, write_svg
from hftl.report.formats import ScoreFormat, format_count, is_number
from hftl.report.labels import label_line_ends, label_points
from hftl.report.style import GLYPHS, LIGHT, SENTINELS, VERDICT_ROLES, ArmStyle, Results, build_styles, clean


@dataclass(frozen=True)
class Drawing:
    """A picture: `svg` follows the page's theme and font, `png` is light. `description` says what it shows."""

    name: str
    title: str
    description: str
    svg: str
    png: bytes


def draw_figures(results: Results) -> dict[str, Drawing]:
    """Name -> drawing, for each of the four that the results suffice for."""
    styles = build_styles(results)
    drawings = {}
    with plain_matplotlib():
        for name, (title, draw, describe) in FIGURES.items():
            figure = draw(results, styles, SENTINELS)
            if figure is None:
                continue
            description = describe(results, styles)
            svg = write_svg(figure, name, title, description)
            drawings[name] = Drawing(name, title, description, svg, write_png(draw(results, styles, LIGHT)))
    return drawings


def draw_learning_curves(
    results: Results, styles: Mapping[str, ArmStyle], colours: Mapping[str, str]
) -> Figure | None:
    """Mean score against labels, with its interval as a band and each seed as a faint point."""
    series = {name: _rows_of(results, name) for name in styles}
    series = {name: rows for name, rows in series.items() if rows}
    if not series:
        return None
    figure, axes = build_axes(height=450, left=50, right=236, colours=colours)
    sizes = sorted({row["size"] for rows in series.values() for row in rows})
    _scale_labels_axis(axes, sizes)
    for name, rows in series.items():
        style, colour = styles[name], colours[styles[name].role]
        x, y = [row["size"] for row in rows], [row["mean"] for row in rows]
        axes.plot(x, y, linestyle=style.line, marker=style.marker, color=colour, zorder=4)
        if style.is_chance:
            continue
        cells = [
            cell
            for cell in results["cells"]
            if cell["arm"] == name and cell["role"] != "tuning" and is_number(cell["score"])
        ]  # the score of a tuning cell is one on validation rows
        seeds = {"linestyle": "none", "marker": "o", "markersize": 3.2, "markeredgewidth": 0, "alpha": 0.4}
        axes.plot([cell["size"] for cell in cells], [cell["score"] for cell in cells], color=colour, zorder=3, **seeds)
        _draw_band(axes, [row for row in rows if is_number(row["low"]) and is_number(row["high"])], colour)
    _format_scores_axis(axes, ScoreFormat.of(results))
    axes.set_xlabel("labels, validation included (log scale)", parse_math=False)
    axes.set_title(_title_scores(results), loc="left", parse_math=False)
    label_line_ends(axes, series, styles, colours, ScoreFormat.of(results))
    return figure


def draw_score_against_cost(
    results: Results, styles: Mapping[str, ArmStyle], colours: Mapping[str, str]
) -> Figure | None:
    """Mean score against mean cost of one run; a step line joins what nothing else beats on both."""
    cost = choose_cost(results)
    rows = [row for name in styles for row in _rows_of(results, name) if (row[cost.key] or 0) > 0]
    if not rows:
        return None
    figure, axes = build_axes(height=430, left=50, right=20, colours=colours)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(numticks=12))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.9f}".rstrip("0").rstrip(".")))
    for name, style in styles.items():
        ours = [row for row in rows if row["arm"] == name]
        colour, marker = colours[style.role], "o" if style.is_chance else style.marker
        x, y = [row[cost.key] for row in ours], [row["mean"] for row in ours]
        axes.plot(x, y, linestyle=style.line, linewidth=1.2, color=colour, alpha=0.75, zorder=3)
        for row in ours:
            area = 4.5 + 5 * _rank(row["size"], rows)
            axes.plot([row[cost.key]], [row["mean"]], marker=marker, markersize=area, color=colour, zorder=4)
    lowest, highest = min(row[cost.key] for row in rows), max(row[cost.key] for row in rows)
    axes.set_xlim(lowest / 1.5, highest * (highest / lowest) ** 0.16 * 1.5)  # room for the names on the right
    _format_scores_axis(axes, ScoreFormat.of(results))
    front = find_front(rows, cost.key, results["question"]["greater_is_better"] is not False)
    axes.step(
        [*(row[cost.key] for row in front), axes.get_xlim()[1]],
        [*(row["mean"] for row in front), front[-1]["mean"]],
        where="post", color=colours["muted"], linewidth=6, alpha=0.22, zorder=2,
    )  # fmt: skip
    axes.set_xlabel(f"{cost.title} (log scale)", parse_math=False)
    axes.set_title(_title_scores(results), loc="left", parse_math=False)
    label_points(axes, rows, cost.key, styles, colours)
    return figure


def draw_matrix(results: Results, styles: Mapping[str, ArmStyle], colours: Mapping[str, str]) -> Figure | None:
    """One field for each pair at the largest size compared: row minus column, its interval, the verdict."""
    size = find_largest(results["pairs"])
    pairs = [pair for pair in results["pairs"] if pair["size"] == size]
    if not pairs:
        return None
    rows = [name for name in reversed(styles) if any(pair["a"] == name for pair in pairs)]
    columns = [name for name in reversed(styles) if any(pair["b"] == name for pair in pairs)]
    left, top, height = 156, 50, 62
    width = max(112.0, min(150.0, (WIDTH - left) / len(columns)))
    total = (max(WIDTH, left + width * len(columns)), top + height * len(rows) + 4)
    figure = Figure(figsize=(total[0] / 72, total[1] / 72), dpi=72, facecolor="none")
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, total[0]), ylim=(total[1], 0))
    axes.axis("off")
    for position, name in enumerate(rows):
        _write_name(axes, left - 12, top + height * (position + 0.5), styles[name], colours, align="right")
    for position, name in enumerate(columns):
        _write_name(axes, left + width * (position + 0.5), top - 20, styles[name], colours, align="center")
    for pair in pairs:
        corner = (left + width * columns.index(pair["b"]), top + height * rows.index(pair["a"]))
        _draw_field(axes, pair, corner, (width, height), colours, ScoreFormat.of(results))
    return figure


def draw_calibration(results: Results, styles: Mapping[str, ArmStyle], colours: Mapping[str, str]) -> Figure | None:
    """One small reliability diagram for each arm: accuracy against confidence; the area of a point is its rows."""
    bins = [
        row for row in results["calibration"]["bins"] if is_number(row["confidence"]) and is_number(row["accuracy"])
    ]
    names = [name for name in styles if any(row["arm"] == name for row in bins)]
    if not names:
        return None
    columns, side, gap, left, top = 4, 176, 26, 40, 26
    num_rows = math.ceil(len(names) / columns)
    height = num_rows * (side + 44) + 24
    figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72, facecolor="none")
    most = max([row["count"] or 0 for row in bins] + [1])
    for position, name in enumerate(names):
        column, row_index = position % columns, position // columns
        bottom = height - top - row_index * (side + 44) - side
        rectangle = ((left + column * (side + gap)) / WIDTH, bottom / height, side / WIDTH, side / height)
        axes = figure.add_axes(rectangle, facecolor="none", xlim=(0, 1), ylim=(0, 1))
        ours = sorted((row for row in bins if row["arm"] == name), key=lambda row: row["confidence"])
        _draw_reliability(axes, ours, styles[name], most, colours)
        if column:
            axes.set_yticklabels([])
        if position + columns < len(names):
            axes.set_xticklabels([])
        else:
            axes.set_xlabel("confidence, %", parse_math=False)
    return figure


@dataclass(frozen=True)
class Cost:
    """What score is drawn against: a key of `summary` and the words for it."""

    key: str
    title: str


def choose_cost(results: Results) -> Cost:
    """Money for computing, where every score has it, and else seconds of training."""
    rows = [row for row in results["summary"] if is_number(row["mean"])]
    if rows and all(is_number(row["money"]) for row in rows):
        currency = clean((results["cost"]["prices"] or {}).get("currency") or "")
        return Cost("money", f"computing for one run, mean over seeds{f', {currency}' if currency else ''}")
    return Cost("train_seconds", "seconds of training, mean over seeds")


def find_front(rows: Sequence[Mapping[str, Any]], key: str, greater_is_better: bool) -> list[Mapping[str, Any]]:
    """The rows that no other row beats in both cost and mean score (Pareto), from cheap to dear."""
    sign = 1 if greater_is_better else -1
    front: list[Mapping[str, Any]] = []
    for row in sorted(rows, key=lambda row: (row[key], -sign * row["mean"])):
        if not front or sign * row["mean"] > sign * front[-1]["mean"]:
            front.append(row)
    return front


def find_largest(rows: Sequence[Mapping[str, Any]]) -> int | None:
    """The largest `size` in `rows`."""
    return max((row["size"] for row in rows), default=None)


def _describe_curves(results: Results, styles: Mapping[str, ArmStyle]) -> str:
    size = find_largest([row for row in results["summary"] if is_number(row["mean"])])
    scores = [
        f"{clean(styles[row['arm']].title)} {ScoreFormat.of(results).write(row['mean'])}"
        for name in styles
        for row in _rows_of(results, name)
        if row["size"] == size
    ]
    return f"Mean test score of each arm against the number of labels. At {format_count(size)}: {', '.join(scores)}."


def _describe_cost(results: Results, styles: Mapping[str, ArmStyle]) -> str:
    return f"Mean test score of each arm at each size against {choose_cost(results).title}."


def _describe_matrix(results: Results, styles: Mapping[str, ArmStyle]) -> str:
    size = find_largest(results["pairs"])
    words = [
        f"{clean(styles[pair['a']].title)} minus {clean(styles[pair['b']].title)} "
        f"{ScoreFormat.of(results).write_difference(pair['difference'])}, {pair['verdict'] or 'no verdict'}"
        for pair in results["pairs"]
        if pair["size"] == size
    ]
    return f"Differences in score at {format_count(size)} labels: {'; '.join(words)}."


def _describe_calibration(results: Results, styles: Mapping[str, ArmStyle]) -> str:
    return (
        f"Accuracy against confidence for each arm at {format_count(results['calibration']['size'])} labels; points "
        "below the diagonal mean too confident, above it not confident enough."
    )


FIGURES: dict[str, tuple[str, Callable[..., Figure | None], Callable[..., str]]] = {
    "learning-curves": ("Learning curves", draw_learning_curves, _describe_curves),
    "score-against-cost": ("Score against cost", draw_score_against_cost, _describe_cost),
    "matrix": ("Pairwise differences", draw_matrix, _describe_matrix),
    "calibration": ("Calibration", draw_calibration, _describe_calibration),
}


def _rows_of(results: Results, name: str) -> list[Mapping[str, Any]]:
    """The scored rows of `summary` of one arm, by size."""
    rows = [row for row in results["summary"] if row["arm"] == name and is_number(row["mean"])]
    return sorted(rows, key=lambda row: row["size"])


def _rank(size: float, rows: Sequence[Mapping[str, Any]]) -> float:
    """Place of `size` among all sizes, from 0 to 1."""
    sizes = sorted({row["size"] for row in rows})
    return sizes.index(size) / max(1, len(sizes) - 1)


def _scale_labels_axis(axes: Axes, sizes: Sequence[int]) -> None:
    """Log scale with the sizes as ticks; of crowded ones every second, third, ... from the largest down."""
    axes.set_xscale("log")
    ratio = sizes[-1] / sizes[0]
    axes.set_xlim(sizes[0] / max(ratio, 4) ** 0.05, sizes[-1] * max(ratio, 4) ** 0.03)
    step = math.ceil(len(sizes) / 10)
    shown = sizes[::-1][::step]
    axes.set_xticks(shown, [format_count(size) for size in shown])
    axes.xaxis.set_minor_locator(NullLocator())


def _title_scores(results: Results) -> str:
    metric = clean(str(results["question"]["metric"] or "score").replace("_", " "), 60)
    direction = ", lower is better" if results["question"]["greater_is_better"] is False else ""
    return f"test {metric}{', %' if ScoreFormat.of(results).is_share else ''}{direction}"


def _format_scores_axis(axes: Axes, scores: ScoreFormat) -> None:
    axes.margins(y=0.06)
    axes.yaxis.set_major_locator(MaxNLocator(6))
    factor = 100 if scores.is_share else 1
    step = factor * (axes.get_yticks()[1] - axes.get_yticks()[0])
    digits = max(0, math.ceil(-math.log10(step) - 1e-9)) if step > 0 else 2
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{factor * value:,.{digits}f}".replace("-", "−")))


def _draw_band(axes: Axes, rows: Sequence[Mapping[str, Any]], colour: str) -> None:
    """The interval of the mean; a bar where there is one size only, as a band would have no width."""
    x, low, high = ([row[key] for row in rows] for key in ("size", "low", "high"))
    if len(rows) == 1:
        axes.vlines(x, low, high, color=colour, linewidth=1.5, alpha=0.6, zorder=3)
    else:
        axes.fill_between(x, low, high, color=colour, alpha=0.13, linewidth=0, zorder=2)


def _write_name(axes: Axes, x: float, y: float, style: ArmStyle, colours: Mapping[str, str], align: str) -> None:
    lines = textwrap.wrap(clean(style.title, 60), 20 if align == "right" else 15, max_lines=2, placeholder="…")
    axes.text(x, y, "\n".join(lines), color=colours["ink"], ha=align, va="center", parse_math=False, linespacing=1.15)


def _draw_field(
    axes: Axes,
    pair: Mapping[str, Any],
    corner: tuple[float, float],
    extent: tuple[float, float],
    colours: Mapping[str, str],
    scores: ScoreFormat,
) -> None:
    """One pair of the matrix; a pair of the question itself has an outline."""
    colour = colours[VERDICT_ROLES.get(pair["verdict"], "muted")]
    place, shape = (corner[0] + 2, corner[1] + 2), (extent[0] - 4, extent[1] - 4)
    axes.add_patch(Rectangle(place, *shape, facecolor=colour, alpha=0.13, linewidth=0))
    if pair["is_primary"]:
        axes.add_patch(Rectangle(place, *shape, facecolor="none", edgecolor=colour, linewidth=1.4))
    middle, top = corner[0] + extent[0] / 2, corner[1]
    style = {"ha": "center", "va": "center_baseline", "parse_math": False}
    difference = scores.write_difference(pair["difference"])
    axes.text(middle, top + 17, difference, color=colours["ink"], weight="bold", fontsize=13, **style)
    interval = scores.write_differences(pair["low"], pair["high"])
    axes.text(middle, top + 32, interval, color=colours["ink"], fontsize=10.5, **style)
    words = f"{GLYPHS.get(pair['verdict'], '')} {clean(pair['verdict'] or 'no verdict')}".strip()
    axes.text(middle, top + 47, words, color=colour, fontsize=11, **style)


def _draw_reliability(
    axes: Axes, rows: Sequence[Mapping[str, Any]], style: ArmStyle, most: float, colours: Mapping[str, str]
) -> None:
    tone_down(axes, colours)
    axes.plot([0, 1], [0, 1], color=colours["muted"], linewidth=1, linestyle=(0, (3, 3)), zorder=1)
    axes.grid(color=colours["grid"], linewidth=1)
    x, y = [row["confidence"] for row in rows], [row["accuracy"] for row in rows]
    axes.plot(x, y, color=colours[style.role], linewidth=1.6, linestyle="-", zorder=3)
    for row in rows:
        size = 2.5 + 6.5 * math.sqrt((row["count"] or 0) / most)
        dot = {"markersize": size, "marker": style.marker if style.marker != "None" else "o", "clip_on": False}
        axes.plot([row["confidence"]], [row["accuracy"]], color=colours[style.role], zorder=4, **dot)
    ticks = (0, 0.25, 0.5, 0.75, 1)
    words = ("0", "25", "50", "75", "100")
    axes.set_xticks(ticks, words)
    axes.set_yticks(ticks, words)
    axes.set_title(clean(style.title), loc="left", parse_math=False, color=colours[style.role])
