"""Which arm is better, equal or undecided, in numbers and in plain words?

Turns paired scores into the entries "pairs" and "verdict" of results.json. Must not know: how scores were made, files,
how a report shows them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hftl.compare import stats
from hftl.compare.stats import Interval, Need, VarianceParts
from hftl.errors import UserError
from hftl.models.modes import Role

MAX_SENTENCES = 6  # pairs of arms that are named one by one where nothing separates them
MIN_SEEDS = 3  # with two, the seed spread has one degree of freedom: an interval 6.5 times as wide

Pair = dict[str, Any]


# --- one pair


def compare_pair(
    name_a: str,
    name_b: str,
    scores_a: np.ndarray,
    scores_b: np.ndarray,
    *,
    size: int,
    margin: float,
    alpha: float,
    greater_is_better: bool,
    is_share: bool = True,
) -> Pair:
    """Compare two arms at one size on common seeds and test rows, before any correction for several comparisons.

    Args:
        scores_a, scores_b: [S, N] per-example scores, seeds and rows in the same order; only seeds that both have.
        size: labels.
        margin: differences up to this, in units of the score, do not matter in practice.
        alpha: 1 - confidence of the interval, already shared among the declared looks.
        is_share: the score lies in [0, 1], so that .01 of it is a point.

    Returns:
        An entry of "pairs" that `finish_pairs` completes. Beyond the schema it holds what that needs: `std_error`,
        `df`, `p_equivalence`, `parts` (variance components), `margin`, `covers`; and `p_sign_flip`, a check over
        seeds alone.

    Raises:
        UserError: shapes differ, there are fewer than 2 rows, or a score is not finite.
    """
    scores_a, scores_b = np.asarray(scores_a, dtype=float), np.asarray(scores_b, dtype=float)
    if scores_a.shape != scores_b.shape:
        raise UserError(
            f"Found scores of shape {scores_a.shape} for {name_a} and {scores_b.shape} for {name_b}; expected the "
            "same seeds and test rows. Pass only the seeds that both arms finished."
        )
    differences = scores_a - scores_b
    is_binary = bool(np.isin(scores_a, (0, 1)).all() and np.isin(scores_b, (0, 1)).all())
    is_constant = differences.size > 0 and np.ptp(differences) == 0
    # Without any spread there is no error to estimate: then one row may differ by as much as a whole score.
    unit = 1.0 if is_binary else float(np.abs(scores_a).max()) if is_constant else 0.0
    interval = stats.crossed_interval(differences, alpha, unit=unit)
    pair = _pair_from_interval(
        name_a,
        name_b,
        interval,
        size=size,
        margin=margin,
        alpha=alpha,
        greater_is_better=greater_is_better,
        is_share=is_share,
    )
    if len(differences) == 1:
        pair["mcnemar_p"] = stats.mcnemar_exact(scores_a[0], scores_b[0]) if is_binary else None
    else:
        pair["p_sign_flip"] = stats.sign_flip_p(differences.mean(axis=1))
    pair["sentence"] = _describe(pair) + "."
    return pair


def _pair_from_interval(
    name_a: str,
    name_b: str,
    interval: Interval,
    *,
    size: int,
    margin: float,
    alpha: float,
    greater_is_better: bool,
    is_share: bool,
) -> Pair:
    """An entry of "pairs" from the interval for a minus b."""
    parts = interval.parts
    has_seeds = parts.num_seeds > 1
    pair = {
        "a": name_a,
        "b": name_b,
        "size": int(size),
        "difference": interval.mid,
        "low": interval.low,
        "high": interval.high,
        # One seed shows two trained models. A claim about two ways of training would have no error rate.
        "p_value": stats.two_sided_p(interval) if has_seeds else None,
        "p_holm": None,
        "verdict": "inconclusive",
        "num_seeds": parts.num_seeds,
        "more_seeds": None,
        "more_test_rows": None,
        "is_primary": True,
        "mcnemar_p": None,
        "p_sign_flip": None,
        "p_equivalence": stats.equivalence_p(interval, margin) if has_seeds else None,
        "p_equivalence_holm": None,
        "num_test_examples": parts.num_items,
        "margin": float(margin),
        "alpha": float(alpha),
        "greater_is_better": bool(greater_is_better),
        "is_points": bool(greater_is_better) and is_share,
        "std_error": interval.std_error,
        "df": interval.df,
        "covers": interval.covers,
        "parts": asdict(parts),
    }
    return pair | {"sentence": _describe(pair) + "."}


# --- all pairs


def finish_pairs(pairs: Sequence[Pair], alpha: float, *, titles: Mapping[str, str] | None = None) -> list[Pair]:
    """Set `p_holm`, `verdict`, `more_seeds`, `more_test_rows` and `sentence` of every pair.

    Differences and equivalences are two families, each corrected by Holm over its pairs: with all looks together the
    chance of any false "better" or "worse" is at most alpha, and so is that of any false "equivalent". Equivalence
    needs its own correction: twenty pairs that differ by exactly the margin would else give one false tie on average.
    One pair cannot be wrong in both ways, since it cannot be both 0 and beyond the margin. Inside a pair the two
    one-sided tests need no correction: both must hold.

    The family is the pairs with `is_primary`. The others are corrected over all pairs, so that adding them costs the
    claimed ones nothing. Pairs with one seed make no claim and are in no family.
    """
    finished = [dict(pair) for pair in pairs]
    for is_primary in (False, True):  # the claimed ones last, over themselves alone
        family = [pair for pair in finished if pair["p_value"] is not None and (pair["is_primary"] or not is_primary)]
        for name, adjusted in (("p_value", "p_holm"), ("p_equivalence", "p_equivalence_holm")):
            for pair, p in zip(family, stats.holm([pair[name] for pair in family]), strict=True):
                pair[adjusted] = p
    for pair in finished:
        pair["verdict"] = _judge(pair, alpha)
    for pair in finished:
        family = [
            other for other in finished if other["p_value"] is not None and other["is_primary"] >= pair["is_primary"]
        ]
        needs = _plan_more(pair, family, alpha) if pair["verdict"] == "inconclusive" else (Need(None), Need(None))
        pair["more_seeds"], pair["more_test_rows"] = needs[0].number, needs[1].number
        pair["sentence"] = f"{_describe(pair, titles)}: {_conclude(pair, needs, alpha)}."
    return finished


def _judge(pair: Pair, alpha: float) -> str:
    if pair["p_holm"] is None:
        return "inconclusive"
    if pair["p_equivalence_holm"] < alpha:
        return "equivalent"
    if pair["p_holm"] < alpha:
        return "better" if (pair["difference"] > 0) == pair["greater_is_better"] else "worse"
    return "inconclusive"


def _plan_more(pair: Pair, family: Sequence[Pair], alpha: float) -> tuple[Need, Need]:
    """More seeds and more test rows, at the level that Holm still asks of the pairs not yet rejected."""
    open_pairs = max(sum(other["p_holm"] >= alpha for other in family), 1)
    open_equivalences = max(sum(other["p_equivalence_holm"] >= alpha for other in family), 1)
    interval = Interval(pair["difference"], pair["low"], pair["high"], parts=VarianceParts(**pair["parts"]))
    levels = {"alpha": alpha / open_pairs, "alpha_equivalence": alpha / open_equivalences}
    return (
        stats.extra_seeds(interval, margin=pair["margin"], **levels),
        stats.extra_test_rows(interval, margin=pair["margin"], **levels),
    )


# --- words


def _amount(value: float, pair: Pair, sign: bool = False) -> str:
    """A number of points, or of the score's own unit."""
    if not pair["is_points"]:
        return f"{value:{'+' if sign else ''}.3g}"
    points = round(100 * value, 1 if abs(value) >= 0.001 else 2) + 0.0  # no minus zero
    return f"{points:{'+' if sign else ''}g}"


def _points(pair: Pair) -> str:
    return " points" if pair["is_points"] else ""


def _describe(pair: Pair, titles: Mapping[str, str] | None = None) -> str:
    """`At 256 labels LoRA scores 3.1 points more than Probe (95 % interval +1.2 to +5, 5 seeds, 1,000 rows)`."""
    difference, unit = pair["difference"], _points(pair)
    a, b = ((titles or {}).get(name, name) for name in (pair["a"], pair["b"]))
    if difference == 0:
        relation = f"{a} and {b} score the same"
    else:
        more = "more" if difference > 0 else "less"
        hint = "" if pair["greater_is_better"] else f" (lower is better: {'worse' if difference > 0 else 'better'})"
        relation = f"{a} scores {_amount(abs(difference), pair)}{unit} {more} than {b}{hint}"
    limits = f"{_amount(pair['low'], pair, True)} to {_amount(pair['high'], pair, True)}{unit}"
    seeds = f"{pair['num_seeds']} seed{'s' * (pair['num_seeds'] > 1)}"
    level = f"{100 * (1 - pair['alpha']):.4g} % interval"
    return (
        f"At {pair['size']:,} labels {relation} ({level} {limits}, {seeds}, {pair['num_test_examples']:,} test rows)"
    )


def _conclude(pair: Pair, needs: tuple[Need, Need], alpha: float) -> str:
    margin = f"{_amount(pair['margin'], pair)}{_points(pair)}"
    if pair["verdict"] == "equivalent":
        also = ", though not exactly equal" if pair["p_holm"] < alpha else ""
        return f"equivalent within {margin}{also} (p {_p(pair['p_equivalence_holm'])} after Holm)"
    if pair["verdict"] in ("better", "worse"):
        return f"{pair['verdict']} (p {_p(pair['p_holm'])} after Holm)"
    if pair["num_seeds"] == 1:
        return "inconclusive: the interval is over test rows only, one seed does not show what another one would give"
    alone = pair["p_value"] < alpha
    why = " (alone it would count, among all comparisons it may be chance)" if alone else ""
    return f"inconclusive{why}; {_advise(needs)}"


def _advise(needs: tuple[Need, Need]) -> str:
    seeds, rows = needs
    options = [f"{seeds.number:,} more seed{'s' * (seeds.number > 1)}"] if seeds.number else []
    options += [f"{rows.number:,} more test rows"] if rows.number else []
    if options:
        text = f"about {' or '.join(options)} would decide if the estimates hold"
        if not seeds.number:
            return f"{text}; more seeds alone would not, the {seeds.stopped_by} limit it"
        return text if rows.number else f"{text}; more test rows alone would not, the {rows.stopped_by} limit it"
    return (
        f"neither {stats.MAX_EXTRA_SEEDS} more seeds (the {seeds.stopped_by} limit it) nor {stats.MAX_EXTRA_ROWS:,} "
        f"more test rows (the {rows.stopped_by} limit it) would decide"
    )


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.2g}"


# --- all sizes


@dataclass(frozen=True)
class SizeVerdict:
    """Who is left at one size.

    Attributes:
        arms: the contenders, those that look at their input.
        unbeaten: contenders to which no arm is better; one alone is better than all others, by a chain of claims.
        winner: the only unbeaten one, or the cheapest of unbeaten ones that are all equivalent; else None.
    """

    size: int
    arms: list[str]
    unbeaten: list[str]
    winner: str | None


def overall_verdict(
    pairs: Sequence[Pair],
    summary: Sequence[Mapping[str, Any]],
    curves: Sequence[Mapping[str, Any]],
    parity: Mapping[str, Any],
    cost: Mapping[str, Any],
    question: Mapping[str, Any],
    *,
    roles: Mapping[str, Role],
    titles: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Which arm from how many labels on, by how much, how surely and at what cost: the entry "verdict".

    Args:
        pairs: from `finish_pairs`; every two arms that are to be told apart need one, or a chain of "better".
        summary, curves, parity, cost, question: the entries of results.json; any may be empty in a partial campaign.
        roles: of every arm.
        titles: names of arms for the headline and the lines; those in the pairs' sentences are from `finish_pairs`.

    Returns:
        headline, status ("decided" when some size has a winner, "undecided", "blocked"), lines, next_experiment.
    """
    if (parity or {}).get("is_blocked"):
        return _blocked(parity)
    sizes = sorted({row["size"] for row in [*pairs, *summary]})
    by_size = [_judge_size(size, pairs, summary, roles) for size in sizes]
    names = {arm: (titles or {}).get(arm, arm) for judged in by_size for arm in judged.arms}
    if not any(len(judged.arms) > 1 for judged in by_size):
        found = f"only {_join(sorted(names.values()))} has finished" if names else "no arm has finished"
        next_step = "Finish the runs that are missing; two arms at one size are the least."
        return _verdict(f"Cannot tell: {found}", "undecided", [], next_step)
    segments = _segment(by_size)
    status = "decided" if any(segment[0].winner for segment in segments) else "undecided"
    lines = [line for segment in segments for line in _explain(segment, pairs, summary, cost, names)]
    lines += _say_surety(pairs, question) + _find_unbeaten_baselines(by_size, pairs, summary, titles or {}, roles)
    lines += _say_limits(by_size, summary, curves, names) + _list_flags(parity, "warns")
    return _verdict(_headline(segments, names), status, lines, _plan_next(by_size, pairs, summary, cost, names))


def _verdict(headline: str, status: str, lines: list[str], next_experiment: str | None) -> dict[str, Any]:
    return {"headline": headline, "status": status, "lines": lines, "next_experiment": next_experiment}


def _blocked(parity: Mapping[str, Any]) -> dict[str, Any]:
    blocking = [flag for flag in parity["flags"] if flag["severity"] == "blocks"]
    repair = "; ".join(dict.fromkeys(flag["what"] for flag in blocking))
    headline = "No verdict: the arms were not compared under equal conditions"
    return _verdict(headline, "blocked", _list_flags(parity, "blocks"), f"Repair, then compare again: {repair}.")


def _list_flags(parity: Mapping[str, Any], severity: str) -> list[str]:
    flags = [flag for flag in (parity or {}).get("flags", []) if flag["severity"] == severity]
    word = "Repair" if severity == "blocks" else "Mind"
    return [f"{word}: {flag['what']} ({', '.join(flag['arms']) or 'all arms'}): {flag['detail']}" for flag in flags]


def _judge_size(
    size: int, pairs: Sequence[Pair], summary: Sequence[Mapping[str, Any]], roles: Mapping[str, Role]
) -> SizeVerdict:
    here = [pair for pair in pairs if pair["size"] == size]
    paired = [arm for pair in here for arm in (pair["a"], pair["b"])]
    finished = [row["arm"] for row in summary if row["size"] == size]
    arms = [arm for arm in dict.fromkeys([*finished, *paired]) if roles[arm] is not Role.CHANCE]
    beaten = {pair["b"] if pair["verdict"] == "better" else pair["a"] for pair in here if _is_decided(pair)}
    unbeaten = [arm for arm in arms if arm not in beaten]
    rivals = [(a, b) for number, a in enumerate(unbeaten) for b in unbeaten[number + 1 :]]
    is_tie = all((pair := _find_pair(here, a, b)) and pair["verdict"] == "equivalent" for a, b in rivals)
    winner = None
    if len(arms) > 1 and unbeaten and is_tie:
        winner = min(unbeaten, key=lambda arm: _mean_cost(arm, unbeaten, summary))
    return SizeVerdict(size, arms, unbeaten, winner)


def _is_decided(pair: Pair) -> bool:
    return pair["verdict"] in ("better", "worse")


def _find_pair(pairs: Sequence[Pair], a: str, b: str, size: int | None = None) -> Pair | None:
    wanted = ({a, b}, size)
    return next((p for p in pairs if ({p["a"], p["b"]}, p["size"] if size is not None else None) == wanted), None)


def _mean_cost(arm: str, rivals: Sequence[str], summary: Sequence[Mapping[str, Any]]) -> tuple[float, ...]:
    """(money, seconds) of a run, averaged over the sizes that all rivals finished; 0 for what is not known of all."""
    rows = [row for row in summary if row["arm"] in rivals]
    shared = set.intersection(*({row["size"] for row in rows if row["arm"] == rival} for rival in rivals))
    rows = [row for row in rows if row["size"] in shared]
    means = []
    for name in ("money", "wall_seconds"):
        is_known = rows and all(row.get(name) is not None for row in rows)
        means.append(float(np.mean([row[name] for row in rows if row["arm"] == arm])) if is_known else 0.0)
    return tuple(means)


def _segment(by_size: Sequence[SizeVerdict]) -> list[list[SizeVerdict]]:
    """Runs of neighbouring sizes with the same winner, or with none."""
    segments: list[list[SizeVerdict]] = []
    for judged in by_size:
        if segments and segments[-1][0].winner == judged.winner:
            segments[-1].append(judged)
        else:
            segments.append([judged])
    return segments


def _headline(segments: Sequence[Sequence[SizeVerdict]], names: Mapping[str, str]) -> str:
    """`lora, from 256 labels on`, `probe up to 128 labels; full, from 256 labels on`, `Cannot tell ...`."""
    if all(segment[0].winner is None for segment in segments):
        last = segments[-1][-1]
        if not last.unbeaten:
            return "Cannot tell: no arm is shown to be better than one that ignores its input"
        return f"Cannot tell {_join([names[arm] for arm in last.unbeaten], 'from')} at {last.size:,} labels"
    texts = []
    for number, segment in enumerate(segments):
        first, last, winner = segment[0].size, segment[-1].size, segment[0].winner
        is_last, span = number == len(segments) - 1, f"from {first:,} to {last:,} labels"
        if winner is None:
            texts += [f"cannot tell {f'at {last:,} labels' if first == last else span}"] * (number > 0)
        elif is_last:
            texts.append(f"{names[winner]}, {'at' if len(segments) == len(segment) == 1 else 'from'} {first:,} labels")
            texts[-1] += "" if len(segments) == len(segment) == 1 else " on"
        elif number == 0:
            texts.append(f"{names[winner]} up to {last:,} labels")
        else:
            texts.append(f"{names[winner]} {f'at {last:,} labels' if first == last else span}")
    return "; ".join(texts)


def _join(words: Sequence[str], last: str = "and") -> str:
    return f" {last} ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _explain(
    segment: Sequence[SizeVerdict],
    pairs: Sequence[Pair],
    summary: Sequence[Mapping[str, Any]],
    cost: Mapping[str, Any],
    names: Mapping[str, str],
) -> list[str]:
    """By how much and at what cost, at the largest size of the segment."""
    judged, lines = segment[-1], []
    where = f"At {judged.size:,} labels"
    if judged.winner is None:
        if len(judged.arms) < 2:
            return [f"{where} only {_join([names[arm] for arm in judged.arms])} has finished."]
        if not judged.unbeaten:
            return [f"{where} every arm is worse than one that ignores its input."]
        out = [names[arm] for arm in judged.arms if arm not in judged.unbeaten]
        ruled_out = f"; ruled out: {_join(out)}" if out else ""
        lines.append(f"{where} nothing separates {_join([names[arm] for arm in judged.unbeaten])}{ruled_out}.")
        here = [_find_pair(pairs, a, b, judged.size) for a in judged.unbeaten for b in judged.unbeaten if a < b]
        known = [pair for pair in here if pair]
        claimed = [pair for pair in known if pair["is_primary"]] if len(known) > MAX_SENTENCES else known
        lines += [pair["sentence"] for pair in claimed]
        if claimed != known:
            lines.append(f"{where} {len(known) - len(claimed)} more comparisons are in the table of pairs.")
        missing = len(here) - len(known)
        return lines + [f"{where} {missing} of these comparisons have no seeds in common."] * bool(missing)
    ties = [arm for arm in judged.unbeaten if arm != judged.winner]
    if ties:
        costs = [_say_cost(arm, judged.unbeaten, summary, cost) for arm in (judged.winner, *ties)]
        reason = (
            f"costs {costs[0]} a run against {_join(costs[1:])}" if all(costs) else "is named first: costs unknown"
        )
        tied = _join([names[arm] for arm in ties])
        lines.append(f"{where} {names[judged.winner]} and {tied} are equivalent; {names[judged.winner]} {reason}.")
    rivals = [_find_pair(pairs, judged.winner, arm, judged.size) for arm in judged.arms if arm != judged.winner]
    found = sorted((pair for pair in rivals if pair), key=lambda pair: abs(pair["difference"]))
    lines += [pair["sentence"] for pair in found]
    spent = _say_cost(judged.winner, [judged.winner], [row for row in summary if row["size"] == judged.size], cost)
    return lines + [f"{where} one run of {names[judged.winner]} costs {spent}."] * bool(spent and not ties)


def _say_cost(arm: str, rivals: Sequence[str], summary: Sequence[Mapping[str, Any]], cost: Mapping[str, Any]) -> str:
    """`12.3 s and 0.02 USD`, means over seeds and the sizes that all rivals finished; empty where not known."""
    money, seconds = _mean_cost(arm, rivals, summary)
    currency = ((cost or {}).get("prices") or {}).get("currency", "")
    texts = [_say_seconds(seconds)] if seconds else []
    return _join([*texts, *([f"{money:.2g} {currency}".strip()] if money else [])] or [""])


def _say_seconds(seconds: float) -> str:
    """`1,610 s` and `1.61 s`: three digits, never a power of ten."""
    return f"{float(f'{seconds:.3g}'):,g} s" if seconds < 1e5 else f"{seconds:,.0f} s"


def _say_surety(pairs: Sequence[Pair], question: Mapping[str, Any]) -> list[str]:
    claims = sum(pair["p_holm"] is not None and pair["is_primary"] for pair in pairs)
    if not claims:
        return ["No comparison has two seeds: nothing can be claimed about the arms yet."]
    alpha, looks = (question or {}).get("alpha", pairs[0]["alpha"]), (question or {}).get("looks") or [0]
    shared = f", shared among {len(looks)} declared looks" if len(looks) > 1 else ""
    return [
        f"Over all {claims} comparisons together the chance of any false better or worse is at most {100 * alpha:g} % "
        f"(Holm{shared}), and that of any false equivalent as well; each interval stands for itself alone."
    ]


def _find_unbeaten_baselines(
    by_size: Sequence[SizeVerdict],
    pairs: Sequence[Pair],
    summary: Sequence[Mapping[str, Any]],
    titles: Mapping[str, str],
    roles: Mapping[str, Role],
) -> list[str]:
    """Cheap arms and chance that the best trained arm is not shown to beat, at the largest size that has them."""
    lines = []
    for baseline in [arm for arm, role in roles.items() if not role.is_trained]:
        judged = next((j for j in reversed(by_size) if _has(baseline, j.size, pairs, summary)), None)
        rivals = [arm for arm in judged.arms if roles[arm].is_trained] if judged else []
        if not rivals:
            continue
        found = [(arm, _find_pair(pairs, arm, baseline, judged.size)) for arm in rivals]
        wins = [
            arm
            for arm, pair in found
            if pair and _is_decided(pair) and (pair["a"] == arm) == (pair["verdict"] == "better")
        ]
        if not wins:
            title, where = titles.get(baseline, baseline), f"at {judged.size:,} labels"
            how = "no trained arm is shown to beat" if any(pair for _, pair in found) else "no arm was compared with"
            lines.append(f"Baseline: {how} {title} {where}.")
    return lines


def _has(arm: str, size: int, pairs: Sequence[Pair], summary: Sequence[Mapping[str, Any]]) -> bool:
    in_summary = any(row["arm"] == arm and row["size"] == size for row in summary)
    return in_summary or any(pair["size"] == size and arm in (pair["a"], pair["b"]) for pair in pairs)


def _say_limits(
    by_size: Sequence[SizeVerdict],
    summary: Sequence[Mapping[str, Any]],
    curves: Sequence[Mapping[str, Any]],
    names: Mapping[str, str],
) -> list[str]:
    """What the verdict does not reach: other sizes, and arms that are missing at some."""
    everyone = list(names)
    lines = [
        f"Not finished at {judged.size:,} labels: {_join([names[arm] for arm in everyone if arm not in judged.arms])}."
        for judged in by_size
        if set(everyone) - set(judged.arms)
    ]
    refused = [names.get(curve["arm"], curve["arm"]) for curve in curves or [] if curve.get("refused")]
    beyond = f"; the curves of {_join(refused)} cannot be extrapolated" if refused else ""
    return [*lines, f"Nothing beyond {by_size[-1].size:,} labels was run{beyond}."]


# --- what to do next


def _plan_next(
    by_size: Sequence[SizeVerdict],
    pairs: Sequence[Pair],
    summary: Sequence[Mapping[str, Any]],
    cost: Mapping[str, Any],
    names: Mapping[str, str],
) -> str | None:
    """The cheapest step that would decide the largest size that is open; None when every size is decided."""
    judged = next((j for j in reversed(by_size) if j.winner is None), None)
    if judged is None:
        return None
    rivals = judged.unbeaten if len(judged.unbeaten) > 1 else judged.arms
    found = {(a, b): _find_pair(pairs, a, b, judged.size) for a in rivals for b in rivals if a < b}
    who, where = _join([names[arm] for arm in rivals]), f"at {judged.size:,} labels"
    if not found or not all(found.values()):
        return f"Finish the runs {where}: {who} have no comparison on common seeds for every two of them."
    few = min(pair["num_seeds"] for pair in found.values())
    if few == 1:
        return (
            f"At least {MIN_SEEDS - few} more seeds of {who} {where}: one seed does not show the spread between seeds."
        )
    still_open = [pair for pair in found.values() if pair["verdict"] == "inconclusive"]
    options = [_price_seeds(still_open, rivals, judged.size, summary), _price_rows(still_open, cost)]
    options = sorted((option for option in options if option), key=lambda option: option[0])
    if options:
        return f"{options[0][1]} {where} ({who}) would decide it if the estimates hold{options[0][2]}."
    larger = 2 * by_size[-1].size
    return (
        f"A larger size, {larger:,} labels, for {who}: {where} neither {stats.MAX_EXTRA_SEEDS} more seeds nor "
        f"{stats.MAX_EXTRA_ROWS:,} more test rows would decide all of it."
    )


def _price_seeds(still_open: Sequence[Pair], rivals: Sequence[str], size: int, summary: Sequence) -> tuple | None:
    """(rank, what, cost in words). Seeds need machine time only: they rank before rows unless money says otherwise."""
    if not still_open or any(pair["more_seeds"] is None for pair in still_open):
        return None
    number = max(pair["more_seeds"] for pair in still_open)
    rows = [row for row in summary if row["size"] == size and row["arm"] in rivals]
    seconds = [row.get("wall_seconds") for row in rows]
    money = [row.get("money") for row in rows]
    known = f", about {_say_seconds(number * sum(seconds))} of runs" if rows and None not in seconds else ""
    rank = number * sum(money) if rows and None not in money else 0.0
    return rank, f"{number:,} more seed{'s' * (number > 1)}", known


def _price_rows(still_open: Sequence[Pair], cost: Mapping[str, Any]) -> tuple | None:
    """(rank, what, cost in words). Without a price of a label new rows are dearer than any number of seeds."""
    if not still_open or any(pair["more_test_rows"] is None for pair in still_open):
        return None
    number = max(pair["more_test_rows"] for pair in still_open)
    prices = (cost or {}).get("prices") or {}
    price = prices.get("label")
    if not isinstance(price, int | float):
        return float("inf"), f"{number:,} more labelled test rows", ""
    words = f", about {number * price:.3g} {prices.get('currency', '')}".rstrip() + " of labels"
    return number * price, f"{number:,} more labelled test rows", words
