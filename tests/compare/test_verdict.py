"""The verdict in words: who wins from where on, or what would decide it."""

import numpy as np
import pytest

from hftl.compare.verdict import compare_pair, finish_pairs, overall_verdict
from hftl.models.modes import Role

QUESTION = {
    "metric": "accuracy",
    "margin": 0.02,
    "alpha": 0.05,
    "looks": [5],
    "greater_is_better": True,
    "num_test_examples": 800,
}
PARITY = {"is_blocked": False, "equal": [], "flags": []}
COST = {"wall_seconds": 100.0}
TITLES = {"full": "Full fine-tuning", "lora": "LoRA", "tfidf": "TF-IDF", "majority": "Majority class"}
ROLES = {
    "full": Role.TUNED,
    "lora": Role.TUNED,
    "scratch": Role.SCRATCH,
    "probe": Role.FROZEN,
    "tfidf": Role.CHEAP,
    "knn": Role.CHEAP,
    "probe@checkpoint": Role.FROZEN,
    "majority": Role.CHANCE,
    "guess": Role.CHANCE,
}


def make(accuracy, *, seconds=None, num_seeds=5, num_items=800, margin=0.02, size=128, seed=0):
    """Pairs and summary of arms with these accuracies at one size; `full` is the reference."""
    rng = np.random.default_rng(seed)
    rows = rng.random(num_items)  # how hard a row is, the same for all arms
    scores = {
        arm: np.stack([(rows + rng.normal(0, 0.03, num_items) < value).astype(float) for _ in range(num_seeds)])
        for arm, value in accuracy.items()
    }
    options = {"size": size, "margin": margin, "alpha": 0.05, "greater_is_better": True}
    pairs = [compare_pair(arm, "full", scores[arm], scores["full"], **options) for arm in scores if arm != "full"]
    spent = {arm: (seconds or {}).get(arm, 10.0) for arm in scores}
    shared = {"size": size, "num_seeds": num_seeds, "low": None, "high": None, "train_seconds": 5.0}
    summary = [
        {"arm": arm, "mean": float(v.mean()), "wall_seconds": spent[arm], "money": spent[arm] / 1e4} | shared
        for arm, v in scores.items()
    ]
    return finish_pairs(pairs, 0.05), summary


def judge(pairs, summary, parity=PARITY):
    roles = {row["arm"]: ROLES.get(row["arm"], Role.TUNED) for row in summary}
    return overall_verdict(pairs, summary, [], parity, COST, QUESTION, roles=roles, titles=TITLES)


def test_the_arm_that_beats_all_others_is_named_with_its_size():
    verdict = judge(*make({"full": 0.9, "lora": 0.7, "tfidf": 0.5}))
    assert verdict["status"] == "decided"
    assert "Full fine-tuning" in verdict["headline"] and "128" in verdict["headline"]
    assert any("95 % interval" in line for line in verdict["lines"])


def test_the_cheaper_of_two_equivalent_arms_is_preferred():
    verdict = judge(
        *make({"full": 0.8, "lora": 0.8, "tfidf": 0.4}, seconds={"full": 100.0, "lora": 10.0}, margin=0.05)
    )
    assert verdict["status"] == "decided"
    assert verdict["headline"].startswith("LoRA")


def test_what_is_not_decided_says_what_would_decide_it():
    pairs, summary = make({"full": 0.80, "lora": 0.79}, num_seeds=3, num_items=60)
    verdict = judge(pairs, summary)
    assert pairs[0]["verdict"] == "inconclusive"
    assert verdict["status"] == "undecided" and verdict["headline"].startswith("Cannot tell")
    assert any(character.isdigit() for character in verdict["next_experiment"])


def test_of_many_arms_that_nothing_separates_only_the_claims_are_named():
    accuracy = {"full": 0.80} | {f"arm{number}": 0.79 for number in range(4)}
    pairs, summary = make(accuracy, num_seeds=3, num_items=60)
    others = [
        pair | {"a": "arm0", "b": f"arm{number}", "is_primary": False} for number, pair in enumerate(pairs) if number
    ]
    verdict = judge(pairs + others, summary)
    assert all(any(pair["sentence"] in line for line in verdict["lines"]) for pair in pairs)
    assert any("3 more comparisons are in the table of pairs" in line for line in verdict["lines"])


def test_chance_never_wins():
    verdict = judge(*make({"full": 0.3, "majority": 0.6}))
    assert not verdict["headline"].startswith("Majority")


def test_a_baseline_that_is_not_beaten_is_mentioned():
    verdict = judge(*make({"full": 0.6, "tfidf": 0.8}))
    assert "TF-IDF" in verdict["headline"] + " ".join(verdict["lines"])


def test_a_broken_contract_blocks_the_verdict_and_says_what_to_repair():
    flag = {"severity": "blocks", "what": "unequal trials", "arms": ["lora"], "detail": "3 instead of 8"}
    verdict = judge(*make({"full": 0.9, "lora": 0.5}), parity={"is_blocked": True, "equal": [], "flags": [flag]})
    assert verdict["status"] == "blocked"
    assert "unequal trials" in " ".join([verdict["headline"], *verdict["lines"]])


@pytest.mark.parametrize("arms", [[], ["full"]])
def test_a_campaign_that_has_hardly_begun_has_a_verdict_too(arms):
    _, summary = make({"full": 0.8, "lora": 0.7})
    verdict = judge([], [row for row in summary if row["arm"] in arms])
    assert verdict["status"] == "undecided" and verdict["headline"].startswith("Cannot tell")


def test_where_less_is_better_the_lower_arm_is_better():
    rng = np.random.default_rng(0)
    loss = rng.random((5, 300))
    options = {"size": 8, "margin": 0.01, "alpha": 0.05, "greater_is_better": False}
    pair = compare_pair("a", "b", loss, loss + 0.2 + rng.normal(0, 0.01, (5, 300)), **options)
    assert finish_pairs([pair], 0.05)[0]["verdict"] == "better"


@pytest.mark.parametrize("chance", ["majority", "guess"])
def test_chance_never_wins_whatever_its_name(chance):
    verdict = judge(*make({"full": 0.5, "lora": 0.5, chance: 0.9}))
    assert TITLES.get(chance, chance) not in verdict["headline"]
    assert f"Baseline: no trained arm is shown to beat {TITLES.get(chance, chance)} at 128 labels." in verdict["lines"]


@pytest.mark.parametrize("cheap", ["tfidf", "knn", "probe@checkpoint"])
def test_a_cheap_arm_in_the_lead_is_said_to_be_unbeaten_whatever_its_name(cheap):
    verdict = judge(*make({"full": 0.6, "lora": 0.6, cheap: 0.9}))
    assert f"Baseline: no trained arm is shown to beat {TITLES.get(cheap, cheap)} at 128 labels." in verdict["lines"]
