"""Which tables does the report have, and what is in them? As text cells, which the page and the Markdown both lay out.

Every number is one of results.json; rows are chosen and put in order here, never averaged.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hftl.report.formats import (
    NO_NUMBER,
    ScoreFormat,
    format_any,
    format_bytes,
    format_count,
    format_flops,
    format_level,
    format_money,
    format_p,
    format_seconds,
    format_share,
    is_number,
)
from hftl.report.style import GLYPHS, VERDICT_ROLES, ArmStyle, Results

MAX_CONFUSION_CLASSES = 20  # beyond that a square table is not read, the most confused pairs are
NUM_CONFUSED_PAIRS = 15


@dataclass(frozen=True)
class Cell:
    """One field. `role` is a colour of the page, `shade` (0 to 1) the strength of a heat table's ground."""

    text: str
    role: str | None = None
    shade: float | None = None


@dataclass(frozen=True)
class Column:
    """Head of a column; numbers stand on the right."""

    title: str
    is_number: bool = True


@dataclass(frozen=True)
class Table:
    """A caption, heads and rows; the first cell of each row names it. `rows` may be empty."""

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]


def _build(caption: str, titles: Sequence[str], rows: Iterable[Sequence[Cell | str]], num_words: int = 1) -> Table:
    """The first `num_words` columns hold words, the others numbers; a title that starts with ~ is of words as well."""
    columns = [Column(title.lstrip("~"), i >= num_words and title[:1] != "~") for i, title in enumerate(titles)]
    cells = [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in rows]
    return Table(caption, columns, cells)


def name_arm(name: Any, styles: Mapping[str, ArmStyle]) -> Cell:
    """An arm by its title, with its marker, in its colour."""
    style = styles.get(name)
    return Cell(f"{style.glyph} {style.title}", style.role) if style else Cell(str(name))


def name_verdict(verdict: str | None) -> Cell:
    """A verdict with its sign."""
    if not verdict:
        return Cell("no verdict", "muted")
    return Cell(f"{GLYPHS.get(verdict, '')} {verdict}".strip(), VERDICT_ROLES.get(verdict, "muted"))


def build_scores(results: Results, styles: Mapping[str, ArmStyle]) -> Table:
    """Mean scores: one row for each arm, one column for each size."""
    scores = ScoreFormat.of(results)
    found = {(row["arm"], row["size"]): row for row in results["summary"]}
    sizes = sorted({row["size"] for row in results["summary"]})
    rows = [
        [name_arm(arm, styles), *(scores.write(found.get((arm, size), {}).get("mean")) for size in sizes)]
        for arm in styles
        if any(key[0] == arm for key in found)
    ]
    return _build("Mean test score at each number of labels", ["arm", *map(format_count, sizes)], rows)


def build_summary(results: Results, styles: Mapping[str, ArmStyle]) -> Table:
    """Everything known about each arm at each size, largest size first."""
    scores = ScoreFormat.of(results)
    order = {arm: position for position, arm in enumerate(styles)}
    rows = [
        [
            name_arm(row["arm"], styles), format_count(row["size"]), format_count(row["num_seeds"]),
            scores.write(row["mean"]), scores.write_range(row["low"], row["high"]),
            scores.write_range(row["min"], row["max"]), scores.write_bare(row["std"]),
            format_seconds(row["train_seconds"]), format_seconds(row["wall_seconds"]),
            format_flops(row["train_flops"]), format_bytes(row["peak_memory_bytes"]), format_money(row["money"]),
        ]
        for row in sorted(results["summary"], key=lambda row: (-row["size"], order[row["arm"]]))
    ]  # fmt: skip
    interval = f"{format_level(results['question']['alpha'])}interval"
    titles = [
        "arm", "labels", "seeds", "mean score", interval, "lowest to highest seed", "std over seeds",
        "train s", "wall s", "train FLOPs", "peak memory", "computing, money",
    ]  # fmt: skip
    return _build("Score and mean cost of one run, each arm at each size", titles, rows)


def build_pairs(results: Results, styles: Mapping[str, ArmStyle]) -> list[Table]:
    """One table of comparisons for each size, the largest first."""
    scores, tables = ScoreFormat.of(results), []
    for size in sorted({pair["size"] for pair in results["pairs"]}, reverse=True):
        rows = [
            [
                name_arm(pair["a"], styles), name_arm(pair["b"], styles), scores.write_difference(pair["difference"]),
                scores.write_differences(pair["low"], pair["high"]), name_verdict(pair["verdict"]),
                format_p(pair["p_value"]), format_p(pair["p_holm"]), format_count(pair["num_seeds"]),
                _say_needs(pair), "claimed" if pair["is_primary"] else "explored",
            ]
            for pair in results["pairs"]
            if pair["size"] == size
        ]  # fmt: skip
        titles = ["A", "~minus B", f"difference, {scores.unit}", "interval", "~verdict on A", "p", "p (Holm)", "seeds"]
        titles += ["~would decide it", "~kind"]
        tables.append(_build(f"Differences at {format_count(size)} labels", titles, rows))
    return tables


def _say_needs(pair: Mapping[str, Any]) -> str:
    needs = [
        f"{format_count(pair[key])} more {words}"
        for key, words in (("more_seeds", "seeds"), ("more_test_rows", "test rows"))
        if is_number(pair[key])
    ]
    return " or ".join(needs) or NO_NUMBER


def build_buckets(results: Results) -> Table:
    """Where the time of the workers went, with a bar beside each number."""
    buckets = {name: value for name, value in results["cost"]["buckets"].items() if is_number(value)}
    longest = max([*buckets.values(), 0.0]) or 1.0
    rows = [[str(name), format_seconds(value), Cell("", "bar", value / longest)] for name, value in buckets.items()]
    return _build("Seconds of all workers together", ["what for", "seconds", "~"], rows)


def build_money(results: Results) -> Table:
    """Total money, split into labels and computing."""
    cost = results["cost"]
    currency = format_any(cost["prices"].get("currency") or "money")
    parts = (("labels", "label_money"), ("computing", "compute_money"), ("together", "money"))
    rows = [[words, format_money(cost[key])] for words, key in parts if is_number(cost[key])]
    return _build("Money for the whole comparison", ["what for", currency], rows)


def build_targets(results: Results, styles: Mapping[str, ArmStyle]) -> Table:
    """What each arm costs until it reaches a score."""
    scores = ScoreFormat.of(results)
    rows = [
        [
            name_arm(row["arm"], styles), scores.write(row["target"]),
            format_count(row["size"]) if is_number(row["size"]) else "not reached",
            *(format_money(row[key]) for key in ("label_money", "compute_money", "money")),
        ]
        for row in results["cost"]["to_target"]
    ]  # fmt: skip
    titles = ["arm", "target score", "labels needed", "money, labels", "money, one run", "money, together"]
    return _build("The smallest measured size at which the mean score reaches the target", titles, rows)


def build_curves(results: Results, styles: Mapping[str, ArmStyle]) -> Table:
    """The fitted curves, and whether each one predicted the size that was hidden from it."""
    scores, rows = ScoreFormat.of(results), []
    for curve in results["curves"]:
        fit, test = curve["fit"] or {}, curve["backtest"] or {}
        inside = {True: "inside", False: "outside"}.get(test.get("is_inside"), NO_NUMBER)
        rows.append([
            name_arm(curve["arm"], styles), scores.write(fit.get("floor")), format_any(_round(fit.get("scale"))),
            format_any(_round(fit.get("exponent"))), format_count(test.get("hidden_size")),
            scores.write_range(test.get("predicted_low"), test.get("predicted_high")),
            scores.write(test.get("observed")), inside, curve["refused"] or NO_NUMBER,
        ])  # fmt: skip
    titles = [
        "arm",
        "floor",
        "scale",
        "exponent",
        "hidden size",
        "predicted",
        "observed",
        "~which is",
        "~why not used",
    ]
    return _build("Fit: error = floor + scale × labels^−exponent; back-test on the largest size", titles, rows)


def _round(value: Any) -> float | None:
    return float(f"{value:.3g}") if is_number(value) else None


def build_per_class(results: Results, styles: Mapping[str, ArmStyle]) -> Table:
    """F1 of each class and arm as a heat table."""
    part = results["per_class"]
    f1 = {(row["label"], row["arm"]): row["f1"] for row in part["rows"]}
    support = {row["label"]: row["support"] for row in part["rows"]}
    arms = [arm for arm in styles if any(key[1] == arm for key in f1)]
    rows = [
        [str(label), format_count(count), *(_heat(format_share, f1.get((label, arm))) for arm in arms)]
        for label, count in support.items()
    ]  # fmt: skip
    caption = f"F1 of each class at {format_count(part['size'])} labels, mean over seeds"
    return _build(caption, ["class", "test rows", *(styles[arm].title for arm in arms)], rows)


def _heat(write: Callable[[float | None], str], value: float | None, most: float = 1.0) -> Cell:
    shade = max(0.0, min(1.0, value / most)) if is_number(value) and most > 0 else None
    return Cell(write(value), None if shade is None else "heat", shade)


def build_confusion(results: Results) -> Table:
    """Rows are the true classes, columns the predicted ones; of many classes the pairs confused most often."""
    part = results["confusion"]
    labels, counts = [str(label) for label in part["labels"]], part["counts"]
    if len(labels) > MAX_CONFUSION_CLASSES:
        wrong = [(i, j) for i in range(len(counts)) for j in range(len(counts)) if i != j and (counts[i][j] or 0) > 0]
        wrong = sorted(wrong, key=lambda place: -counts[place[0]][place[1]])[:NUM_CONFUSED_PAIRS]
        rows: list[list[Cell | str]] = [[labels[i], labels[j], format_count(counts[i][j])] for i, j in wrong]
        return _build("The pairs confused most often", ["true class", "~predicted class", "rows"], rows)
    rows = []
    for label, line in zip(labels, counts, strict=False):
        most = max([value for value in line if is_number(value)] + [0])
        rows.append([label, *(_heat(format_count, value, most) for value in line)])
    return _build("True class (rows) against predicted class (columns), test rows of all seeds", ["", *labels], rows)


def build_failures(results: Results, styles: Mapping[str, ArmStyle]) -> Table:
    """Cells that ended without a score."""
    rows = [
        [
            name_arm(row["arm"], styles), format_count(row["size"]), format_any(row["seed"]),
            format_any(row["status"]), format_any(row["error"]),
        ]
        for row in results["failures"]
    ]  # fmt: skip
    return _build("Cells that failed", ["arm", "labels", "seed", "~status", "~error"], rows)


def build_missing(results: Results, styles: Mapping[str, ArmStyle]) -> Table:
    """Cells that were planned and have not run, the seeds of each arm and size together."""
    seeds: dict[tuple[str, float], list[str]] = {}
    for row in results["missing"]:
        seeds.setdefault((row["arm"], row["size"]), []).append(format_any(row["seed"]))
    rows = [[name_arm(arm, styles), format_count(size), ", ".join(found)] for (arm, size), found in seeds.items()]
    return _build("Cells that have not run", ["arm", "labels", "~seeds"], rows)


def build_arms(results: Results, styles: Mapping[str, ArmStyle]) -> Table:
    """What each arm is."""
    rows = [
        [
            name_arm(arm["name"], styles), format_any(arm["name"]), format_any(arm["mode"]),
            format_count(arm["num_parameters"]), format_count(arm["num_trainable_parameters"]),
            format_bytes(arm["file_bytes"]), format_any(arm["settings"] or None),
        ]
        for arm in results["arms"]
    ]  # fmt: skip
    titles = ["arm", "~name", "~mode", "parameters", "trained", "file", "~settings"]
    return _build(
        "Size of the network and of the saved file, and the settings that the experiment gives", titles, rows
    )


def build_cells(results: Results, styles: Mapping[str, ArmStyle]) -> Table:
    """Every cell, as it was run."""
    scores = ScoreFormat.of(results)
    rows = [
        [
            name_arm(cell["arm"], styles), format_count(cell["size"]), format_any(cell["seed"]),
            format_any(cell["role"]), format_any(cell["status"]), scores.write(cell["score"]),
            format_count(cell["num_train_examples"]), format_count(cell["num_validation_examples"]),
            format_count(cell["num_steps"]), format_seconds(cell["train_seconds"]),
            format_seconds(cell["wall_seconds"]), format_bytes(cell["peak_memory_bytes"]),
            format_money(cell["compute_money"]), format_any(cell["folder"]),
        ]
        for cell in results["cells"]
    ]  # fmt: skip
    titles = [
        "arm", "labels", "seed", "~role", "~status", "score", "train rows", "validation rows", "steps", "train s",
        "wall s", "peak memory", "computing, money", "~folder",
    ]  # fmt: skip
    return _build("Every cell", titles, rows)
