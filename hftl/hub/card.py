"""What does the page of a pushed model say? Rendered from `run.json` alone, and from a comparison where one is named.

No number is made here but the interval of the test score. Of local files the last part of their name is shown, and of
the settings numbers and the words that `SHOWN` lists.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from hftl.cost.energy import estimate_energy
from hftl.cost.prices import load_prices
from hftl.errors import UserError
from hftl.hub.names import name_all, name_of
from hftl.hub.seal import seal
from hftl.hub.snippets import write_snippet
from hftl.hub.stage import Staged, has_local_base, has_local_data, is_vocabulary_own
from hftl.inference.evaluation import compute_row_limits
from hftl.report.escape import escape_line
from hftl.run_record import RunRecord, read_predictions
from hftl.runtime.files import redact
from hftl.tasks import build_task, leading_score, scores_of

TEMPLATE = Path(__file__).with_name("templates") / "model_card.md"
TAG = "hftl"  # in the metadata of every card that is written here: by it a later push knows its own
# The metric whose interval is shown.
Interval = tuple[str, float | None, float | None]  # metric, lower and upper end
MODES = {
    "full": "fine-tuned in full",
    "peft": "tuned with a {adapter} adapter",
    "scratch": "trained from random weights",
    "probe": "a linear head on frozen features",
}
# Settings that are words and say how a model was trained. Others may be paths, names of columns or notes of the user.
SHOWN = {
    *(
        "task",
        "mode",
        "adapter",
        "problem_type",
        "head_init",
        "dtype",
        "quantization",
        "class_weights",
        "augmentation",
    ),
    *("on_bad_rows", "optim", "lr_scheduler_type", "train_sampling_strategy", "metric_for_best_model"),
    *("save_strategy", "eval_strategy", "logging_strategy", "target_modules", "config_overrides"),
}


@dataclass(frozen=True)
class Licences:
    """Of the base model and of the data, under the Hub's names; None where unknown."""

    base: str | None = None
    data: str | None = None


def render_card(staged: Staged, licences: Licences, campaign: Path | None = None) -> str:
    """The whole README.md, metadata first.

    Args:
        staged: what goes up.
        licences: as far as they are known.
        campaign: folder of a comparison, whose table is shown.
    """
    record = staged.record
    split = "test" if "test" in record.metrics else "validation"
    metric = leading_score(record.data["problem_type"])
    score = scores_of(record.data["problem_type"])[metric]
    limits = compute_row_limits(score, read_predictions(staged.run)) if score.by_row else (None, None)
    interval: Interval = (metric, *limits)
    metadata = build_metadata(staged, licences, split, interval)
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    text = environment.get_template(TEMPLATE.name).render(
        title=staged.repo_id.partition("/")[2],
        summary=_summarize(staged),
        warnings=[
            escape_line(line)
            for line in [*describe_licences(staged, licences), *filter(None, [describe_vocabulary(staged)])]
        ],
        snippet=write_snippet(staged),
        data=_describe_data(record),
        labels=", ".join(_write_code(name) for name in record.data["label_names"][:100]),
        score_sentence=_describe_interval(record, split, interval),
        split=split,
        scores=[(name, f"{value:.4f}") for name, value in _scores(record, split).items()],
        per_class=_list_classes(record, split),
        comparison=read_comparison(campaign) if campaign else None,
        cost=_describe_cost(record),
        limits=_list_limits(record),
        settings=[
            (name, _write_code(value)) for name, value in sorted(record.config.items()) if _is_shown(name, value)
        ],
        versions=_describe_versions(record),
    )
    card = seal(redact(f"---\n{metadata.to_yaml()}\n---\n\n{text}"))
    ModelCard(card)  # reads it back: metadata that the client cannot parse are an error here and not on the Hub
    return card


def build_metadata(staged: Staged, licences: Licences, split: str, interval: Interval) -> ModelCardData:
    """The metadata that the Hub reads; names of this machine are left out, which it would refuse."""
    record, base = staged.record, staged.record.model["name"]
    is_known = record.mode != "scratch" and record.model.get("revision") and not has_local_base(record)
    named = staged.base.name if staged.base else base if is_known else None
    source, (metric, *limits) = record.data["source"], interval
    is_hub_data = not has_local_data(record)
    results = [
        EvalResult(
            task_type=build_task(record.task).pipeline_tag,
            dataset_type=source if is_hub_data else name_of(source),
            dataset_name=name_of(source),
            dataset_split=split,
            metric_type=name,
            metric_value=round(value, 6),
            metric_args={"confidence_interval": [round(end, 6) for end in limits], "confidence_level": 0.95}
            if name == metric and None not in limits
            else None,
        )
        for name, value in _scores(record, split).items()
    ]
    return ModelCardData(
        base_model=named,
        base_model_relation=None if named is None else "adapter" if staged.base else "finetune",
        datasets=[source] if is_hub_data else None,
        license=choose_licence(staged, licences),
        library_name="peft" if staged.base else "transformers",
        pipeline_tag=build_task(record.task).pipeline_tag,
        tags=[TAG, record.mode, *([record.adapter] if record.adapter else [])],
        model_name=staged.repo_id.partition("/")[2],
        eval_results=results,
    )


def choose_licence(staged: Staged, licences: Licences) -> str | None:
    """That of the base, whose weights are in it or under it; trained from scratch it has none to carry over."""
    return None if staged.record.mode == "scratch" else licences.base


def describe_licences(staged: Staged, licences: Licences) -> list[str]:
    """A sentence for each licence that is unknown or has to be carried over by hand."""
    lines = []
    base, data = (name_of(name) for name in (staged.record.model["name"], staged.record.data["source"]))
    if choose_licence(staged, licences) is None:
        of = "this model" if staged.record.mode == "scratch" else f"the base model ({base})"
        lines.append(f"The licence of {of} is not known: find it out, and add it to the metadata.")
    if licences.data is None:
        lines.append(f"The licence of the training data ({data}) is not known; it may limit the use of the model.")
    return lines


def describe_vocabulary(staged: Staged) -> str | None:
    """A sentence where the tokenizer holds words of the training texts, as one that was made from them does."""
    if not is_vocabulary_own(staged.record):
        return None
    return (
        "The tokenizer was made from the training texts: its files list words and parts of words that occur in them, "
        "and rare ones, such as names, may be among them."
    )


def read_comparison(campaign: Path) -> dict[str, Any]:
    """Table of the scores of every arm at every size, from the `results.json` of a comparison.

    Raises:
        UserError: there is none.
    """
    file = campaign / "results.json"
    if not file.is_file():
        raise UserError(f"{campaign} has no results.json; give the folder of `hftl compare`.")
    results = name_all(json.loads(file.read_text(encoding="utf-8")), with_rows=False)
    means = {(row["arm"], row["size"]): row for row in results["summary"]}
    rows = []
    for arm in results["arms"]:
        found = [means.get((arm["name"], size)) for size in results["sizes"]]
        cells = [_write_range(row["mean"], row["low"], row["high"]) if row else "" for row in found]
        rows.append({"title": escape_line(arm.get("title") or arm["name"]), "cells": cells})
    metric = results["question"]["metric"].replace("_", " ")
    sentence = f"Test {metric}, mean over {len(results['seeds'])} seeds (95 % interval), by number of labels. "
    sizes = [f"{size:,}" for size in results["sizes"]]
    return {"sentence": sentence + escape_line(results["verdict"]["headline"]) + ".", "sizes": sizes, "rows": rows}


def _write_range(mean: float, low: float | None, high: float | None) -> str:
    return f"{mean:.3f}" if low is None or high is None else f"{mean:.3f} ({low:.3f} to {high:.3f})"


def _is_shown(name: str, value: Any) -> bool:
    """Numbers and truth values say nothing of who trained and where; of words that is known for a few settings."""
    return isinstance(value, bool | int | float) or name in SHOWN


def _write_code(value: Any) -> str:
    """Text that can end neither its code span nor the row of a table."""
    return f"`{' '.join(str(value).split()).replace('|', '/').replace('`', chr(39))}`"


def _scores(record: RunRecord, split: str) -> dict[str, float]:
    return {name: value for name, value in record.metrics[split].items() if isinstance(value, float)}


def _summarize(staged: Staged) -> str:
    record = staged.record
    how = MODES[record.mode].format(adapter=record.adapter)
    base = staged.base.name if staged.base else name_of(record.model["name"])
    revision = f" at `{staged.base.revision}`" if staged.base else ""
    over = "of the architecture of" if record.mode == "scratch" else "over" if staged.base else "from"
    merged = " The adapter is folded into the weights." if staged.is_merged else ""
    total, trained = record.model["num_parameters"], record.model["num_trainable_parameters"]
    purpose = build_task(record.task).pipeline_tag.replace("-", " ")
    return (
        f"A model for {purpose}, {how} {over} `{base}`{revision} with hftl. "
        f"{trained:,} of its {total:,} parameters were trained.{merged}"
    )


def _describe_data(record: RunRecord) -> str:
    sizes = {name: record.data.get(f"num_{name}_examples") for name in ("train", "validation", "test")}
    listed = ", ".join(f"{count:,} for {name}" for name, count in sizes.items() if count)
    return f"`{name_of(record.data['source'])}`, rows: {listed}. Fingerprint `{record.data['fingerprint']}`."


def _describe_interval(record: RunRecord, split: str, interval: Interval) -> str:
    metric, low, high = interval
    value, count = record.metrics[split][metric], record.data[f"num_{split}_examples"]
    sentence = f"{metric.replace('_', ' ')} on {count:,} {split} rows: **{value:.3f}**"
    if low is None or high is None:
        return f"{sentence}."
    limits = f"95 % interval {low:.3f} to {high:.3f}, over rows"
    return f"{sentence} ({limits}; another training run may differ by more)."


def _list_classes(record: RunRecord, split: str) -> list[dict[str, Any]]:
    table: Mapping[str, Mapping[str, float]] = record.metrics[split].get("per_class") or {}
    return [
        {"name": escape_line(name), "support": row["support"]}
        | {key: f"{row[key]:.3f}" for key in ("precision", "recall", "f1")}
        for name, row in table.items()
    ]


def _describe_cost(record: RunRecord) -> str:
    cost, environment, prices = record.cost, record.environment, load_prices()
    device = environment.get("device", "cpu")
    where = environment.get("cpu", device) if device == "cpu" else device
    text = f"{cost['wall_seconds']:,.0f} s on {environment.get('num_devices', 1)} x {where}"
    if flops := cost.get("train_flops"):
        text += f", {flops:.3g} floating-point operations of training"
    threads, devices = environment.get("num_threads", 1), environment.get("num_devices", 1)
    kwh = estimate_energy(cost["wall_seconds"], device, threads, prices, num_devices=devices).kwh
    if kwh is None:
        return f"{text}."
    grams = kwh * prices.carbon_grams_per_kwh
    return (
        f"{text}. About {kwh:.2g} kWh and {grams:.2g} g of CO2, estimated from the power of busy devices and "
        f"{prices.carbon_grams_per_kwh:g} g for a kWh, not measured."
    )


def _list_limits(record: RunRecord) -> list[str]:
    limits = ["Scored on rows like those it was trained on; on others it may do worse. Not tested for bias."]
    if record.data["label_names"] and record.data["problem_type"] == "single_label_classification":
        limits.append("It always answers with one of its labels, for inputs that belong to none as well.")
    limits.append("Parts of the training data may be recoverable from the weights.")
    return limits


def _describe_versions(record: RunRecord) -> str:
    packages = record.environment.get("packages", {})
    names = ("hftl", "torch", "transformers", "peft", "datasets")
    listed = ", ".join(f"{name} {packages[name]}" for name in names if name in packages)
    return f"Python {record.environment.get('python')}, {listed}; seed {record.seed}; settings `{record.config_hash}`."
