"""What held a run up most, and which setting would help? One sentence from the numbers of its record, or none.

Arithmetic alone: it measures nothing. Gains are what the numbers allow at best, so each says "about" or "at most".
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MIN_SHARE = 0.15  # of the time after start-up; below that, no setting is worth a sentence
MIN_SECONDS = 5.0  # nor is one that wins less: a test of two steps saves and evaluates more than it trains
ENOUGH_EVALUATIONS = 10  # of one run, to choose its best checkpoint among
ENOUGH_SAVES = 5


@dataclass(frozen=True)
class Remedy:
    """A sentence, and the seconds that its advice would win."""

    seconds: float
    sentence: str


def compute_speed(cost: Mapping[str, Any], peak_flops: float | None, *, recomputes: bool) -> dict[str, float | None]:
    """Rates and shares of one run.

    Args:
        cost: of a run record.
        peak_flops: of all devices together, operations a second; None: not known.
        recomputes: with activation checkpointing, FLOPs as counted hold some that no result needs. Then they say
            nothing about MFU (Chowdhery et al. 2022, appendix B), which is None.

    Returns:
        `examples_per_second` and `tokens_per_second` (real ones) over the seconds of training, `mfu`, and the shares
        of the wall time: `data_wait_share` (part of training), `evaluation_share`, `save_share`, `idle_share` (what
        is charged to no work). None where there is nothing to divide by.
    """
    wall, train = cost.get("wall_seconds"), cost.get("train_seconds")
    flops = None if recomputes else cost.get("train_flops")
    return {
        "examples_per_second": _divide(cost.get("num_examples_seen"), train),
        "tokens_per_second": _divide(cost.get("num_tokens_seen"), train),
        "mfu": _divide(_divide(flops, train), peak_flops),
        "data_wait_share": _divide(cost.get("data_wait_seconds"), wall),
        "evaluation_share": _divide(cost.get("evaluation_seconds"), wall),
        "save_share": _divide(cost.get("save_seconds"), wall),
        "idle_share": _divide(cost.get("other_seconds"), wall),
    }


def _divide(amount: float | None, by: float | None) -> float | None:
    return None if amount is None or not by else amount / by


def diagnose(cost: Mapping[str, Any], settings: Mapping[str, Any]) -> str | None:
    """The sentence whose advice wins most, or None when nothing is wrong.

    Args:
        cost: of a run record, with `data_wait_seconds`, `num_evaluations` and `num_saves`.
        settings: `dataloader_num_workers`, `num_free_cores` (that do not compute), `modality`, `task`, `is_packed`,
            `train_sampling_strategy`.
    """
    work = cost["wall_seconds"] - cost["startup_seconds"]
    remedies = [rule(cost, settings) for rule in (_on_data, _on_padding, _on_evaluation, _on_saving)]
    worst = max((remedy for remedy in remedies if remedy), key=lambda remedy: remedy.seconds, default=None)
    if worst is None or worst.seconds < max(MIN_SECONDS, MIN_SHARE * work):
        return None
    return worst.sentence


def _on_data(cost: Mapping[str, Any], settings: Mapping[str, Any]) -> Remedy | None:
    """Loading beside computing: w workers need (load / w) seconds while the model computes."""
    wait, train = cost["data_wait_seconds"], cost["train_seconds"]
    compute, workers = train - wait, settings["dataloader_num_workers"]
    load = wait if workers == 0 else train * workers  # with workers, they were busy all the time
    enough = math.ceil(load / max(compute, 1e-9))
    wanted = min(enough, settings["num_free_cores"])
    kind = "image decoding and augmentation" if settings["modality"] == "image" else "batches of text"
    found = f"The model waits {wait / train:.0%} of the training time for {kind}" if train else ""
    faster = max(compute, load / max(1, wanted))
    if wanted <= workers or train - faster < MIN_SHARE * train:
        smaller = "a smaller --image_size" if settings["modality"] == "image" else "a shorter --max_length"
        cores = "no processor core is left" if wanted <= workers else "too few processor cores are left"
        return Remedy(wait, f"{found}, and {cores} for more loader workers: {smaller} would help.")
    noun = "worker" if wanted == 1 else "workers"
    advice = f"{wanted} {noun} (--dataloader_num_workers {wanted}) would give about {train / faster:.1f}x"
    return Remedy(train - faster, f"{found}: {advice}.")


def _on_padding(cost: Mapping[str, Any], settings: Mapping[str, Any]) -> Remedy | None:
    fraction = cost.get("padding_fraction")
    if not fraction or settings["is_packed"]:
        return None
    wasted = (cost["train_seconds"] - cost["data_wait_seconds"]) * fraction
    found = f"{fraction:.0%} of the tokens that the model computes are padding"
    gain = f"at most {1 / (1 - fraction):.1f}x"
    if settings["train_sampling_strategy"] != "group_by_length":
        advice = f"batches of similar lengths (--train_sampling_strategy group_by_length) would give {gain}"
    elif settings["task"] == "causal-lm":
        advice = f"rows one after the other (--packing) would give {gain}"
    else:  # what is left with grouped rows goes away in smaller batches alone, which cost more than they win
        return None
    return Remedy(wasted, f"{found}: {advice}.")


def _on_evaluation(cost: Mapping[str, Any], settings: Mapping[str, Any]) -> Remedy | None:
    return _on_repeats(cost, "evaluation", cost["num_evaluations"], ENOUGH_EVALUATIONS)


def _on_saving(cost: Mapping[str, Any], settings: Mapping[str, Any]) -> Remedy | None:
    return _on_repeats(cost, "save", cost["num_saves"], ENOUGH_SAVES)


def _on_repeats(cost: Mapping[str, Any], bucket: str, count: int, enough: int) -> Remedy | None:
    """Fewer repeats; the seconds of a bucket are taken to be spread evenly over them."""
    if count <= enough:
        return None
    seconds = cost[f"{bucket}_seconds"]
    saved = seconds * (1 - enough / count)
    flag, doing = {"evaluation": ("eval", "Evaluating"), "save": ("save", "Saving checkpoints")}[bucket]
    share = seconds / (cost["wall_seconds"] - cost["startup_seconds"])
    return Remedy(
        saved,
        f"{doing} {count} times takes {share:.0%} of the time after start-up: {enough} times "
        f"(--{flag}_strategy steps --{flag}_steps {1 / enough:g}) would save about {saved:,.0f} s.",
    )
