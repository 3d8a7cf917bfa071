"""Where does a name go in a drawing, so that it covers neither a point nor another name?"""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

from hftl.report.canvas import WIDTH
from hftl.report.formats import ScoreFormat
from hftl.report.style import ArmStyle, clean


def spread(positions: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move positions apart to at least `gap`, as little as possible and within [low, high], in the same order.

    Overlapping ones form a block around their mean; blocks that meet become one.
    """
    order = sorted(range(len(positions)), key=lambda index: positions[index])
    blocks: list[tuple[float, list[int]]] = []
    for index in order:
        members = [index]
        while True:
            half = gap * (len(members) - 1) / 2
            centre = sum(positions[member] for member in members) / len(members)
            centre = max(low + half, min(high - half, centre))
            if not blocks or centre - half - gap >= blocks[-1][0] + gap * (len(blocks[-1][1]) - 1) / 2:
                break
            members = blocks.pop()[1] + members
        blocks.append((centre, members))
    moved = [0.0] * len(positions)
    for centre, members in blocks:
        for place, member in enumerate(members):
            moved[member] = centre + gap * (place - (len(members) - 1) / 2)
    return moved


def label_line_ends(
    axes: Axes,
    series: Mapping[str, Sequence[Mapping[str, Any]]],
    styles: Mapping[str, ArmStyle],
    colours: Mapping[str, str],
    scores: ScoreFormat,
) -> None:
    """Name and last mean beside the end of each line, moved apart where they would overlap."""
    ends = {name: rows[-1] for name, rows in series.items()}
    points = {name: axes.transData.transform((row["size"], row["mean"])) for name, row in ends.items()}
    box = axes.get_window_extent()
    heights = spread([point[1] for point in points.values()], 19, box.y0 + 4, box.y1)
    to_axes = axes.transAxes.inverted().transform
    for (name, row), height in zip(ends.items(), heights, strict=True):
        style, colour = styles[name], colours[styles[name].role]
        start, bend, end = (to_axes(point) for point in (points[name], (box.x1 + 4, height), (box.x1 + 14, height)))
        leader = {"transform": axes.transAxes, "clip_on": False, "linewidth": 0.9, "color": colour, "alpha": 0.6}
        if box.x1 - points[name][0] > 40:
            leader["linestyle"] = (0, (1, 3))  # it crosses the drawing and must not look like a curve
        axes.plot([start[0], bend[0], end[0]], [start[1], bend[1], end[1]], zorder=1, **leader)
        words = f"{scores.write(row['mean'])}  {clean(style.title, 24)}"
        axes.text(
            *to_axes((box.x1 + 19, height)), words, transform=axes.transAxes, color=colour, va="center_baseline",
            parse_math=False,
        )  # fmt: skip


def label_points(
    axes: Axes, rows: Sequence[Mapping[str, Any]], key: str, styles: Mapping[str, ArmStyle], colours: Mapping
) -> None:
    """The arm's name beside its largest size, on the first side where it covers no point and no other name."""
    taken = [(x - 6, y - 6, x + 6, y + 6) for x, y in (axes.transData.transform((r[key], r["mean"])) for r in rows)]
    box = axes.get_window_extent()
    for name, style in styles.items():
        last = next((row for row in reversed(rows) if row["arm"] == name), None)
        if last is None:
            continue
        words = clean(style.title)
        x, y = axes.transData.transform((last[key], last["mean"]))
        width, height = 7.2 * len(words), 15
        places = [
            (x + 11 * side - (width if side < 0 else 0), y + up) for up in (0, 14, -14, 28, -28) for side in (1, -1)
        ]
        places += [(x - width / 2, y + up) for up in (18, -18, 32, -32)]
        boxes = [(left, middle - height / 2, left + width, middle + height / 2) for left, middle in places]
        inside = [b for b in boxes if b[0] >= box.x0 and b[2] <= WIDTH and box.y0 <= b[1] and b[3] <= box.y1 + 10]
        spot = min(inside or boxes, key=lambda b: sum(_overlap(b, other) for other in taken))
        taken.append(spot)
        left, middle = axes.transData.inverted().transform((spot[0], (spot[1] + spot[3]) / 2))
        axes.text(left, middle, words, color=colours[style.role], va="center_baseline", parse_math=False, zorder=5)


def _overlap(first: Sequence[float], second: Sequence[float]) -> float:
    """Area that two boxes (left, bottom, right, top) share."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    return max(0.0, width) * max(0.0, height)
