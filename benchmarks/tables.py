"""The tables of README.md and docs/, from benchmarks/results/*.json.

python benchmarks/tables.py            # rewrite the marked parts of these files
python benchmarks/tables.py --check    # fail if they differ from the results
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from hftl.models.modes import MODES

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
TITLES = {
    "wordnet": "WordNet definitions, 45 classes, 1,000 labels, MiniLM-L6",
    "fashion-mnist": "Fashion-MNIST, 10 classes, 100 labels of each, EfficientNet-Lite0 at 96 px",
}
COLUMNS = ("full", "peft", "scratch", "probe")
MODALITY = {"wordnet": "text", "fashion-mnist": "image"}


def read(name: str) -> dict:
    """One results file."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def describe(values: list[float]) -> str:
    """Mean, range and number of seeds."""
    if not values:
        return "not run"
    if len(values) == 1:
        return f"{values[0]:.3f} (1 seed)"
    return f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f}; {len(values)} seeds)"


def accuracy_table() -> str:
    """Test accuracy of every mode with its defaults."""
    content = read("accuracy")
    lines = ["| data and checkpoint | full | LoRA | scratch | probe |", "|---|---|---|---|---|"]
    for data, title in TITLES.items():
        cells = [_values(content, data, mode, default_start(data, mode)) for mode in COLUMNS]
        lines.append(f"| {title} | " + " | ".join(map(describe, cells)) + " |")
    machine = content["environment"]
    commits = ", ".join(sorted({row["commit"][:7] for row in content["rows"]}))
    return "\n".join(lines) + (
        f"\n\nTest accuracy with the defaults, mean of the seeds and their range; the seed also draws the training "
        f"rows. {content['date']}, {machine['cpu']}, two cores, torch {machine['packages']['torch']}; "
        f"`python benchmarks/accuracy.py` at {commits}."
    )


def throughput_table() -> str:
    """Training examples a second beside a stock Trainer."""
    lines = [
        "| full fine-tuning, batch 32 | stock Trainer | hftl | ratio | accuracy, stock and hftl |",
        "|---|---|---|---|---|",
    ]
    dates = " and ".join(sorted({read(f"throughput-{kind}")["date"] for kind in ("text", "image")}))
    titles = {"text": "MiniLM, WordNet definitions, dynamic padding", "image": "EfficientNet-Lite0, 224 px"}
    for kind, title in titles.items():
        content = read(f"throughput-{kind}")
        rates = {
            side: statistics.median(pair[side]["examples_per_second"] for pair in content["pairs"])
            for side in ("stock", "ours")
        }
        accuracy = content["mean_accuracy"]
        lines.append(
            f"| {title} | {rates['stock']:.1f} /s | {rates['ours']:.1f} /s | {content['median_ratio']:.2f}x | "
            f"{accuracy['stock']:.3f}, {accuracy['ours']:.3f} |"
        )
    return "\n".join(lines) + (
        f"\n\nMedians of three pairs, run in turn in one call on the same machine, {dates}; "
        "`python benchmarks/throughput.py text` and `image`."
    )


def campaign_table(name: str) -> str:
    """A finished comparison: mean scores at every size, the verdict, and where arms change places."""
    content = read(f"{name}/results")
    entries = {(entry["arm"], entry["size"]): entry for entry in content["summary"]}
    titles, sizes = {arm["name"]: arm["title"] for arm in content["arms"]}, content["sizes"]
    lines = [f"| labels | {' | '.join(f'{size:,}' for size in sizes)} | one run at {sizes[-1]:,} |"]
    lines.append("|---" * (len(sizes) + 2) + "|")
    for arm, title in titles.items():
        last = entries[arm, sizes[-1]]
        flops = f", {last['train_flops'] / 1e12:.3g} TFLOP" if last["train_flops"] else ""
        cells = [_say_score(entries[arm, size]) for size in sizes]
        lines.append(f"| {title} | {' | '.join(cells)} | {last['wall_seconds']:.0f} s{flops} |")
    question, verdict = content["question"], content["verdict"]
    crossed = [e["sentence"] for e in content["crossovers"] if not e["is_censored"]]
    return "\n".join(
        [
            *lines,
            "",
            f"Test {question['metric']}, mean over {len(content['seeds'])} chains of nested subsets, with the 95 % "
            "interval for new chains and new test rows. "
            f"{question['budget']['sentence']} {question['tuning_sentence']}",
            "",
            f"**{verdict['headline']}.**",
            "",
            *[f"- {sentence}" for sentence in [*verdict["lines"][:1], *crossed]],
            "",
            f"{content['date']}, `{_say_command(content)}`; the page with everything else is "
            f"`benchmarks/results/{name}/report.html`.",
        ]
    )


def pretraining_table() -> str:
    """Own texts without labels before few labels: from the checkpoint and from random weights."""
    content = read("compare-pretrain-wordnet/results")
    flag = next(flag for flag in content["parity"]["flags"] if flag["what"] == "pretraining on own texts")
    pairs = {(pair["a"], pair["b"], pair["size"]): pair for pair in content["pairs"]}
    lines = ["| with own texts first, minus without | labels | points | verdict |", "|---|---|---|---|"]
    for plain, title in (("full", "from the checkpoint"), ("scratch", "from random weights")):
        for size in content["sizes"]:
            pair, sign = pairs.get((f"{plain}-own", plain, size)), 1
            if pair is None:
                pair, sign = pairs[plain, f"{plain}-own", size], -1
            low, high = sorted(100 * sign * pair[end] for end in ("low", "high"))
            difference = f"{100 * sign * pair['difference']:+.1f} ({low:+.1f} to {high:+.1f})"
            lines.append(f"| {title} | {size:,} | {difference} | {_turn(pair['verdict'], sign)} |")
    return "\n".join([campaign_table("compare-pretrain-wordnet"), "", *lines, "", flag["detail"]])


def _turn(verdict: str, sign: int) -> str:
    """The verdict on the other arm of a pair."""
    return {"better": "worse", "worse": "better"}.get(verdict, verdict) if sign < 0 else verdict


def adapter_table(data: str) -> str:
    """What each adapter trains, scores and takes, beside full fine-tuning: tuned with seeds, then once at defaults."""
    tuned, once = (read(f"compare-adapters-{data}{suffix}/results") for suffix in ("", "-all"))
    head = "method | weights trained | test accuracy | minus full | FLOPs of full | peak memory | seconds | file"
    lines = [f"| {head} |", "|---" * (head.count("|") + 1) + "|"]
    full = next(entry for entry in tuned["summary"] if entry["arm"] == "full")
    for content in (tuned, once):
        names = {arm["name"] for arm in tuned["arms"]} if content is once else set()
        arms = {arm["name"]: arm for arm in content["arms"] if arm["name"] not in names}
        files = {cell["arm"]: cell["artifact_bytes"] for cell in content["cells"] if cell["role"] == "final"}
        for entry in sorted(content["summary"], key=lambda entry: -entry["mean"]):
            if (arm := arms.get(entry["arm"])) is None:
                continue
            share = arm["num_trainable_parameters"] / arm["num_parameters"]
            score = f"{entry['mean']:.3f} once" if content is once else _say_score(entry)
            cells = [arm["title"], _say_share(share), score]
            cells += [_say_against_full(tuned, entry["arm"]), f"{entry['train_flops'] / full['train_flops']:.2f}x"]
            cells += [f"{entry['peak_memory_bytes'] / 1e9:.2f} GB", f"{entry['wall_seconds']:.0f}"]
            lines.append(f"| {' | '.join(cells)} | {files[entry['arm']] / 1e6:.1f} MB |")
    question = tuned["question"]
    return "\n".join(lines) + (
        f"\n\n{question['num_test_examples']:,} test rows, {len(tuned['seeds'])} seeds, 95 % intervals for new seeds "
        f"and new rows. {question['budget']['sentence']} {question['tuning_sentence']} *Once*: one seed, the method's "
        "own defaults, nothing tuned. Weights trained include the head; memory is the whole process, the interpreter "
        "and its libraries included; seconds were taken on two cores that other work shared, FLOPs are exact; the "
        f"file is all that a run saves. {tuned['date']}, `{_say_command(tuned)}`; of *once*, `{_say_command(once)}`."
    )


def language_table() -> str:
    """A small language model tuned in every way, against full fine-tuning."""
    content = read("compare-smollm2/results")
    head = ["SmolLM2-135M", "weights trained", "bits per byte", "against full", "verdict", "FLOPs", "seconds"]
    head += ["peak memory", "file"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    arms = {arm["name"]: arm for arm in content["arms"]}
    pairs = {pair["a"]: pair for pair in content["pairs"] if pair["b"] == "full"}
    flops = next(entry["train_flops"] for entry in content["summary"] if entry["arm"] == "full")
    for entry in sorted(content["summary"], key=lambda entry: entry["mean"]):
        arm = arms[entry["arm"]]
        share = arm["num_trainable_parameters"] / arm["num_parameters"]
        cells = [arm["title"], _say_share(share), _say_score(entry), "", ""]
        if pair := pairs.get(entry["arm"]):
            low, high = (f"{pair[end]:+.3f}" for end in ("low", "high"))
            cells[3:] = [f"{pair['difference']:+.3f} ({low} to {high})", pair["verdict"]]
        cells += [f"{entry['train_flops'] / flops:.2f}x", f"{entry['wall_seconds']:.0f}"]
        cells.append(f"{entry['peak_memory_bytes'] / 1e9:.2f} GB")
        lines.append(f"| {' | '.join(cells)} | {arm['file_bytes'] / 1e6:.1f} MB |")
    question, size = content["question"], content["sizes"][0]
    held_out = int(size * question["validation_fraction"])
    return "\n".join(lines) + (
        f"\n\nLower is better; {question['num_test_examples']} definitions of WordNet, {size - held_out} to learn "
        f"from and {held_out} to validate, {len(content['seeds'])} seeds, paired; *equivalent*: within "
        f"{question['margin']}. {question['budget']['sentence']} {question['tuning_sentence']} Two cells at a time on "
        f"two CPU cores, evaluation included in the seconds. {content['date']}, `{_say_command(content)}`."
    )


def quantization_table() -> str:
    """LoRA over weights as they are, in 8 and in 4 bits, on the same rows."""
    content = read("compare-quantization-wordnet/results")
    lines = ["| base | accuracy | against LoRA, points | verdict | seconds | peak memory |", "|---" * 6 + "|"]
    titles = {arm["name"]: arm["title"] for arm in content["arms"]}
    pairs = {pair["a"]: pair for pair in content["pairs"] if pair["b"] == "lora"}
    for entry in content["summary"]:
        cells = [titles[entry["arm"]], _say_score(entry), "", ""]
        if pair := pairs.get(entry["arm"]):
            low, high = (f"{100 * pair[end]:+.1f}" for end in ("low", "high"))
            cells[2:] = [f"{100 * pair['difference']:+.1f} ({low} to {high})", pair["verdict"]]
        cells += [f"{entry['wall_seconds']:.0f}", f"{entry['peak_memory_bytes'] / 1e9:.2f} GB"]
        lines.append(f"| {' | '.join(cells)} |")
    question = content["question"]
    margin = next(iter(pairs.values()))["margin"]
    return "\n".join(lines) + (
        f"\n\n1,000 labels of WordNet and 250 to validate, {question['num_test_examples']:,} test rows, "
        f"{len(content['seeds'])} seeds, paired; *equivalent*: within {100 * margin:.0f} points. Nothing was tuned. "
        f"On two CPU cores that other work shared. {content['date']}, `{_say_command(content)}`."
    )


def memory_table() -> str:
    """A 70B and an 8B network on one card: planned and measured."""
    content = read("qlora-70b")
    head = "case | weights trained | GB planned | GB measured | tokens/s | MFU | longest sequence"
    lines = [f"| {head} |", "|---" * 7 + "|"]
    for name, case in content["cases"].items():
        cells = [name, _say_share(case["trainable_fraction"]), f"{case['plan']['total'] / 1e9:.1f}"]
        if case["status"] == "completed":
            cells += [f"{case['peak_memory_bytes'] / 1e9:.1f}", f"{case['tokens_per_second']:,.0f}"]
            cells.append(f"{100 * case['mfu']:.0f} %")
        else:
            cells += ["out of memory", "", ""]
        refused = case["search"]["shortest_out_of_memory"]
        below = f", below {refused:,}" if refused and case["max_sequence_length"] else ""
        lines.append(f"| {' | '.join(cells)} | {case['max_sequence_length']:,}{below} |")
    environment = content["environment"]
    return "\n".join(lines) + (
        f"\n\nLlama 3 shapes, random weights, batch 1, {content['config']['sequence_length']:,} tokens, activation "
        f"checkpoints, 80 GB at most; `below` is the shortest that did not fit. {environment['device']}, torch "
        f"{environment['packages']['torch']}, {content['date']}, `python benchmarks/qlora_70b.py`."
    )


def _say_share(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.99 else "100 %"


def _say_command(content: dict) -> str:
    return content["command"].split(" --output_dir")[0]


def _say_against_full(content: dict, arm: str) -> str:
    for pair in content["pairs"]:
        if {pair["a"], pair["b"]} == {arm, "full"}:
            sign = 1 if pair["a"] == arm else -1
            low, high = sorted((sign * pair["low"], sign * pair["high"]))
            return f"{100 * sign * pair['difference']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
    return ""


def _say_score(entry: dict) -> str:
    return f"{entry['mean']:.3f} ({entry['low']:.3f} to {entry['high']:.3f})"


def head_table() -> str:
    """Accuracy by where the head starts."""
    content = read("accuracy")
    lines = ["| data | mode | random | probe | default |", "|---|---|---|---|---|"]
    for data in TITLES:
        for mode in ("full", "peft"):
            by_start = {
                row["head"]: [
                    r["accuracy"] for r in content["rows"] if _is(r, data, mode) and r["head"] == row["head"]
                ]
                for row in content["rows"]
                if _is(row, data, mode)
            }
            cells = [describe(by_start.get(start, [])) for start in ("random", "probe")]
            lines.append(f"| {data} | {mode} | {cells[0]} | {cells[1]} | {default_start(data, mode)} |")
    return "\n".join(lines)


def _is(row: dict, data: str, mode: str) -> bool:
    return (row["data"], row["mode"]) == (data, mode)


def _values(content: dict, data: str, mode: str, start: str) -> list[float]:
    return [row["accuracy"] for row in content["rows"] if _is(row, data, mode) and row["head"] == start]


def default_start(data: str, mode: str) -> str:
    """Where the head of a mode starts today, whatever `auto` meant when a row was measured."""
    return MODES[mode].head_init[MODALITY[data]].removeprefix("auto-")


def audit_table() -> str:
    """What the audit takes, finds and reports without cause."""
    content = read("audit")
    lines = ["| measured | on | result |", "|---|---|---|"]
    for name, row in content["seconds"].items():
        lines.append(f"| whole audit | {row['num_rows']:,} {_say_rows(name)} | {row['seconds']:.1f} s |")
    for name, row in content["runs on bundled:wordnet"].items():
        result = f"{row['audit_seconds']:.1f} of {row['loading_seconds']:.1f} s of loading"
        lines.append(f"| audit before a run | bundled:wordnet, {name} | {result} |")
    for data, found in content["recall"].items():
        lines += [f"| planted copies found | {data}: {edit} | {100 * share:.1f} % |" for edit, share in found.items()]
    for data, row in content["alarms"].items():
        result = f"{100 * row['share']:.2f} %"
        lines.append(f"| rows reported as near duplicates | {data}, {row['distinct_rows']:,} distinct | {result} |")
    lengths = list(next(iter(content["edits"].values())))
    lines += ["", f"| copies found, by number of words | {' | '.join(lengths)} |", "|---" * (len(lengths) + 1) + "|"]
    for edit, found in content["edits"].items():
        lines.append(f"| {edit} | {' | '.join(f'{100 * found[length]:.1f} %' for length in lengths)} |")
    return "\n".join(lines) + (
        f"\n\n1,000 copies planted of each kind. One thread of two cores of an "
        f"{content['measured']['texts']['environment']['cpu']}; texts {content['measured']['texts']['date']}, images "
        f"{content['measured']['images']['date']}, `python -m benchmarks.audit`."
    )


def _say_rows(name: str) -> str:
    return f"rows of {name}" if name.startswith("bundled:") else name


SPEED = {
    "text-defaults": "MiniLM full, 2,000 texts once, whole process, against the public script with its defaults",
    "text-dynamic": "the same against the script with dynamic padding and batches of 32",
    "plain-text": "the same against a plain PyTorch loop (SGD, padded to 128, batches of 32)",
    "image-defaults": "EfficientNet-Lite0 full, 224 px, 1,000 JPEGs once, against the public script with its defaults",
    "image-rate": "the same against that script with batches of 32 and a rate of 1e-3, as ours has",
    "plain-image": "EfficientNet-Lite0 full, 224 px, 400 JPEGs once, whole process, against a plain PyTorch loop",
    "text-target": "seconds to .55 test accuracy, 1,000 labels, against that script at its best rate",
    "probe-and-full": "frozen probe against full fine-tuning, 1,000 labels, whole processes",
    "campaign": "27 cells of `hftl compare` against 27 runs of `hftl train`",
    "five-checkpoints": "probing five checkpoints against one full fine-tuning",
    "peak-share": "text training, share of the float32 matrix peak",
    "cold-start": "command to first step, cached data, in times of importing torch and transformers (lower is better)",
    "step-time": "a training step of about 20 ms with all hooks, in times of stock Trainer (lower is better)",
}


def speed_table() -> str:
    """What `python -m benchmarks` has measured so far: ratio first, then both sides."""
    lines = ["| measured on a CPU | ratio | wanted | sides |", "|---|---|---|---|"]
    contents = {name: read(f"speed-{name}") for name in SPEED if (RESULTS / f"speed-{name}.json").is_file()}
    for name, content in contents.items():
        sides = "; ".join(f"{side} {_say_side(values)}" for side, values in content["sides"].items())
        ratio = f"{content['ratio']:.2f}" + ("" if name in ("peak-share", "cold-start", "step-time") else "x")
        lines.append(f"| {SPEED[name]} | {ratio} | {content['goal']:g} | {sides} |")
    dates = ", ".join(sorted({content["date"] for content in contents.values()}))
    machine = next(iter(contents.values()))["environment"]
    builds = " and ".join(sorted({content["environment"]["packages"]["torch"] for content in contents.values()}))
    commits = ", ".join(sorted({content["environment"]["git_commit"][:7] for content in contents.values()}))
    return "\n".join(lines) + (
        f"\n\n*Wanted* is the goal that was set beforehand. The sides of a pair ran in turn in one call. {dates}, "
        f"{machine['cpu']}, two cores, torch {builds}, transformers {machine['packages']['transformers']}; "
        f"`python -m benchmarks` at {commits}."
    )


def _say_side(values: dict) -> str:
    accuracy = f" (accuracy {values['accuracy']:.3f})" if "accuracy" in values else ""
    if "flops_per_second" in values:
        return f"{values['flops_per_second'] / 1e9:.0f} GFLOP/s{accuracy}"
    if values["seconds"] < 1:
        return f"{1000 * values['seconds']:.2f} ms{accuracy}"
    return f"{values['seconds']:.1f} s{accuracy}"


TABLES: dict[str, tuple[str, Callable[[], str]]] = {
    "accuracy": ("README.md", accuracy_table),
    "throughput": ("README.md", throughput_table),
    "compare-wordnet": ("README.md", partial(campaign_table, "compare-wordnet")),
    "compare-fashion-mnist": ("README.md", partial(campaign_table, "compare-fashion-mnist")),
    "head": ("docs/head-init.md", head_table),
    "pretrain-wordnet": ("docs/pretraining.md", pretraining_table),
    "adapters-wordnet": ("docs/adapters.md", partial(adapter_table, "wordnet")),
    "speed": ("README.md", speed_table),
    "performance": ("docs/performance.md", speed_table),
    "audit": ("docs/data-audit.md", audit_table),
    "smollm2": ("docs/adapters.md", language_table),
    "quantization-wordnet": ("docs/adapters.md", quantization_table),
    "qlora-70b": ("docs/adapters.md", memory_table),
    "adapters-fashion-mnist": ("docs/adapters.md", partial(adapter_table, "fashion-mnist")),
}


def main() -> int:
    """Rewrite or check the parts between `<!-- table: NAME -->` and `<!-- end -->`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    is_check = parser.parse_args().check
    stale = []
    for name, (file, build) in TABLES.items():
        path, start = ROOT / file, f"<!-- table: {name} -->\n"
        before, rest = path.read_text().split(start)
        new = before + start + build() + "\n<!-- end -->" + rest.split("<!-- end -->", 1)[1]
        if new != path.read_text():
            stale.append(file)
            if not is_check:
                path.write_text(new)
    if is_check and stale:
        print(f"Not what the results say: {', '.join(stale)}. Run: python benchmarks/tables.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
