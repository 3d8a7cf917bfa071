"""What is claimed about speed on a CPU, and how is each claim measured?

A claim is a function from a work folder to a dictionary with `ratio` (how many times faster ours is, or a share), the
two `sides` and what they are. The sides run in turn in one call on the same machine. Must not know: how results are
kept or shown.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from benchmarks.photo_data import write_photos
from benchmarks.processes import ROOT, build_environment, hftl, run_timed
from benchmarks.public_scripts import read_accuracy, run_image_script, run_text_script
from benchmarks.text_data import write_text_data
from hftl.assets import resolve_model

MINILM = "bundled:minilm-l6"
LITE0 = "bundled:efficientnet-lite0"
QUIET = ["--disable_tqdm", "true", "--logging_steps", "1000"]
BATCHES = "--per_device_train_batch_size 32 --per_device_eval_batch_size 32"
DYNAMIC = f"--pad_to_max_length false {BATCHES}"


def run_hftl(folder: Path, data: dict[str, Path], flags: str, caches: Path | None = None) -> dict[str, Any]:
    """One `hftl train` on these rows, as a process; what it took and scored."""
    files = [word for split, path in data.items() for word in (f"--{split}_file", str(path))]
    words = ["train", *files, "--text_columns", "text", "--label_column", "name", "--model_name_or_path", MINILM]
    command = hftl(*words, *flags.split(), *QUIET, "--output_dir", "out")
    finished = run_timed(command, folder, build_environment(caches or folder / "caches"))
    return {"command": f"hftl train {flags}"} | _read_run(folder / "out", finished.seconds)


def _read_run(folder: Path, seconds: float) -> dict[str, Any]:
    record = json.loads((folder / "run.json").read_text())
    kept = ("startup_seconds", "train_seconds", "evaluation_seconds", "save_seconds", "train_flops")
    accuracy = record["metrics"]["test"]["accuracy"]
    return {"seconds": seconds, "accuracy": accuracy} | {name: record["cost"][name] for name in kept}


def _against_text_script(folder: Path, flags: str) -> dict[str, Any]:
    data = write_text_data(folder / "data", 2000)
    finished = run_text_script(folder / "script", data, resolve_model(MINILM), flags)
    script = {"command": f"run_classification.py {flags}", "seconds": finished.seconds}
    script |= {"accuracy": read_accuracy(folder / "script")}
    ours = run_hftl(folder / "hftl", data, "--mode full --num_train_epochs 1")
    return {"ratio": script["seconds"] / ours["seconds"], "sides": {"script": script, "hftl": ours}}


def text_defaults(folder: Path) -> dict[str, Any]:
    """MiniLM full, 2,000 WordNet definitions once: the public script with its defaults (batch 8, padded to 128)."""
    return _against_text_script(folder, "--num_train_epochs 1")


def text_dynamic(folder: Path) -> dict[str, Any]:
    """The same with dynamic padding and batches of 32."""
    return _against_text_script(folder, f"--num_train_epochs 1 {DYNAMIC}")


def _run_plain_loop(folder: Path, kind: str, train: Path, test: Path, checkpoint: str) -> dict[str, Any]:
    words = [str(ROOT / "benchmarks" / "plain_loop.py"), kind, str(train), str(test), checkpoint]
    finished = run_timed([sys.executable, *words], folder, build_environment(folder / "caches"))
    accuracy = float(finished.output.strip().splitlines()[-1])
    return {"command": f"plain_loop.py {kind}", "seconds": finished.seconds, "accuracy": accuracy}


def plain_text(folder: Path) -> dict[str, Any]:
    """MiniLM full, 2,000 WordNet definitions once: a plain PyTorch loop (SGD, padded to 128, batches of 32)."""
    data = write_text_data(folder / "data", 2000)
    plain = _run_plain_loop(folder / "plain", "text", data["train"], data["test"], str(resolve_model(MINILM)))
    ours = run_hftl(folder / "hftl", data, "--mode full --num_train_epochs 1")
    return {"ratio": plain["seconds"] / ours["seconds"], "sides": {"plain loop": plain, "hftl": ours}}


def run_hftl_on_photos(folder: Path, photos: Path, flags: str) -> dict[str, Any]:
    """One `hftl train` of EfficientNet-Lite0 at 224 px on the images of `write_photos`, as a process."""
    words = ["train", "--task", "image-classification", "--dataset", str(photos), "--model_name_or_path", LITE0]
    command = hftl(*words, *flags.split(), *QUIET, "--output_dir", "out")
    finished = run_timed(command, folder, build_environment(folder / "caches"))
    return {"command": f"hftl train {flags}"} | _read_run(folder / "out", finished.seconds)


def plain_image(folder: Path) -> dict[str, Any]:
    """EfficientNet-Lite0 full at 224 px, 400 JPEGs of 256 px once: a plain PyTorch loop (SGD, batches of 32)."""
    photos = write_photos(folder / "photos")
    checkpoint = str(resolve_model(LITE0))
    plain = _run_plain_loop(folder / "plain", "image", photos / "train", photos / "test", checkpoint)
    ours = run_hftl_on_photos(folder / "hftl", photos, "--mode full --num_train_epochs 1")
    return {"ratio": plain["seconds"] / ours["seconds"], "sides": {"plain loop": plain, "hftl": ours}}


def _against_image_script(folder: Path, flags: str) -> dict[str, Any]:
    photos = write_photos(folder / "photos", 1000, 500)
    finished = run_image_script(folder / "script", photos, resolve_model(LITE0), flags)
    script = {"command": f"run_image_classification.py {flags}", "seconds": finished.seconds}
    script |= {"accuracy": read_accuracy(folder / "script")}
    ours = run_hftl_on_photos(folder / "hftl", photos, "--mode full --num_train_epochs 1")
    return {"ratio": script["seconds"] / ours["seconds"], "sides": {"script": script, "hftl": ours}}


def image_defaults(folder: Path) -> dict[str, Any]:
    """EfficientNet-Lite0 full at 224 px, 1,000 JPEGs once: the public script with its defaults (batch 8, 5e-5)."""
    return _against_image_script(folder, "--num_train_epochs 1")


def image_rate(folder: Path) -> dict[str, Any]:
    """The same with batches of 32 and a rate of 1e-3, which are ours: as many steps, and the script learns more."""
    return _against_image_script(folder, f"--num_train_epochs 1 --learning_rate 1e-3 {BATCHES}")


def text_target(folder: Path) -> dict[str, Any]:
    """Seconds to .55 test accuracy with 1,000 labels; the script with dynamic padding, batches of 32, its best rate.

    The script stops its clock at the first evaluation that reached it, one each epoch. Ours stops at the end of the
    process, and sees the test rows once.
    """
    data = write_text_data(folder / "data", 1000)
    flags = f"--learning_rate 3e-4 --num_train_epochs 5 --eval_strategy epoch {DYNAMIC}"
    finished = run_text_script(folder / "script", data, resolve_model(MINILM), flags)
    accuracies = [metrics["eval_accuracy"] for _, metrics in finished.evaluations]
    script = {"command": f"run_classification.py {flags}", "accuracy": max(accuracies), "accuracies": accuracies}
    script["seconds"] = finished.seconds_to(0.55) or finished.seconds
    ours = run_hftl(folder / "hftl", data, "--mode full --head_init probe --num_train_epochs 1")
    if ours["accuracy"] < 0.55:
        raise RuntimeError(f"hftl did not reach .55: {ours}")
    return {"ratio": script["seconds"] / ours["seconds"], "sides": {"script": script, "hftl": ours}}


def probe_and_full(folder: Path) -> dict[str, Any]:
    """A frozen probe against full fine-tuning with 1,000 labels, both by their defaults; whole processes."""
    data = write_text_data(folder / "data", 1000)
    sides = {mode: run_hftl(folder / mode, data, f"--mode {mode}") for mode in ("full", "probe")}
    return {
        "ratio": sides["full"]["seconds"] / sides["probe"]["seconds"],
        "ratio_of_training": sides["full"]["train_seconds"] / sides["probe"]["train_seconds"],
        "sides": sides,
    }


def _compare(folder: Path, experiment: dict[str, Any], caches: Path) -> float:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "experiment.yaml").write_text(yaml.safe_dump(experiment))
    words = hftl("compare", "experiment.yaml", "--output_dir", "out")
    return run_timed(words, folder, build_environment(caches)).seconds


def _experiment(arms: dict[str, Any], sizes: list[int], seeds: int = 1) -> dict[str, Any]:
    data = {"dataset": "bundled:wordnet", "num_test_examples": 1000}
    settings = {"model_name_or_path": MINILM, "data": data, "arms": arms, "sizes": sizes, "seeds": seeds, "trials": 0}
    return {"name": "speed", "allow_small_test": True, "budget": "steps", "max_steps": 40} | settings


def campaign(folder: Path) -> dict[str, Any]:
    """27 cells (probe, LoRA, full; 64, 128, 256 labels; three seeds) of `hftl compare`, against as many runs.

    Trained cells make 40 steps. The runs are `hftl train` from the `config.yaml` of each cell, one after the other
    with both cores.
    """
    arms = {"probe": None, "lora": None, "full": None}
    compared = _compare(folder / "compare", _experiment(arms, [64, 128, 256], seeds=3), folder / "caches-compare")
    configs = sorted((folder / "compare" / "out").glob("**/config.yaml"))
    separate = [
        run_timed(
            hftl("train", str(config), *QUIET, "--output_dir", f"run-{number}"),
            folder / "separate",
            build_environment(folder / "caches-separate"),
        ).seconds
        for number, config in enumerate(configs)
    ]
    records = [json.loads(config.with_name("run.json").read_text()) for config in configs]
    startup = sorted(record["cost"]["startup_seconds"] for record in records)
    sides = {
        "separate": {"command": f"{len(configs)} x hftl train", "seconds": sum(separate), "each": separate},
        "compare": {"command": "hftl compare", "seconds": compared, "startup_seconds_of_cells": startup},
    }
    return {"ratio": sum(separate) / compared, "num_cells": len(configs), "sides": sides}


def five_checkpoints(folder: Path) -> dict[str, Any]:
    """Probing five checkpoints (MiniLM cut to its lowest 2, 3, 4, 5 and 6 layers) against one full fine-tuning."""
    from transformers import AutoModel, AutoTokenizer

    source, arms = resolve_model(MINILM), {}
    for layers in (2, 3, 4, 5, 6):
        target = folder / f"layers-{layers}"
        AutoModel.from_pretrained(source, num_hidden_layers=layers).save_pretrained(target)
        AutoTokenizer.from_pretrained(source).save_pretrained(target)
        arms[f"layers{layers}"] = {"mode": "probe", "model_name_or_path": str(target.resolve())}
    full = run_hftl(folder / "full", write_text_data(folder / "data", 1000), "--mode full")
    seconds = _compare(folder / "compare", _experiment(arms, [1250]), folder / "caches")
    five = {"command": "hftl compare with five probes", "seconds": seconds}
    return {"ratio": full["seconds"] / seconds, "sides": {"full": full, "five probes": five}}


def peak_share(folder: Path) -> dict[str, Any]:
    """The share of the fp32 matrix peak that text training has: FLOPs counted, seconds of training, peak measured."""
    data = write_text_data(folder / "data", 2000)
    before = measure_matrix_peak()
    ours = run_hftl(folder / "hftl", data, "--mode full --num_train_epochs 1")
    peak = max(before, measure_matrix_peak())
    rate = ours["train_flops"] / ours["train_seconds"]
    sides = {"matrix product": {"flops_per_second": peak}, "hftl": ours | {"flops_per_second": rate}}
    return {"ratio": rate / peak, "sides": sides}


MATRIX_PRODUCT = """
import time, torch
a = torch.randn(2048, 2048)
b = a.to_mkldnn()
best = 1e9
for _ in range(12):
    for multiply in (lambda: a @ a, lambda: torch.nn.functional.linear(b, b)):
        start = time.perf_counter()
        multiply()
        best = min(best, time.perf_counter() - start)
print(2 * 2048**3 / best)
"""


def measure_matrix_peak() -> float:
    """FLOP a second of the best of twelve float32 products of 2,048 x 2,048 matrices by MKL and by oneDNN."""
    environment = build_environment(Path("unused"))
    command = [sys.executable, "-c", MATRIX_PRODUCT]
    return float(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


def cold_start(folder: Path) -> dict[str, Any]:
    """From the command to the first training step on cached data, against importing torch and transformers alone."""
    data, caches = write_text_data(folder / "data", 1000), folder / "caches"
    files = [word for split, path in data.items() for word in (f"--{split}_file", str(path))]
    words = ["train", "--mode", "full", *files, "--text_columns", "text", "--label_column", "name", *QUIET]
    words += ["--model_name_or_path", MINILM, "--output_dir"]
    script, seconds = str(ROOT / "benchmarks" / "first_step.py"), {"imports": [], "hftl": []}
    for turn in range(4):
        for side, rest in {"imports": ["imports"], "hftl": [*words, f"out-{turn}"]}.items():
            finished = run_timed([sys.executable, script, *rest], folder / "runs", build_environment(caches))
            seconds[side].append(float(finished.output.splitlines()[-1]))
    warm = {side: statistics.median(values[1:]) for side, values in seconds.items()}  # the first filled the caches
    sides = {side: {"seconds": warm[side], "each": values} for side, values in seconds.items()}
    return {"ratio": warm["hftl"] / warm["imports"], "sides": sides}


def step_time(folder: Path) -> dict[str, Any]:
    """A training step of about 20 ms with all our hooks against one of stock Trainer, in turns of 60 steps."""
    command = [sys.executable, str(ROOT / "benchmarks" / "step_time.py")]
    finished = run_timed(command, folder, build_environment(folder / "caches"))
    steps = json.loads(finished.output.splitlines()[-1])
    sides = {side: {"seconds": statistics.median(steps[side]), "num_steps": len(steps[side])} for side in steps}
    return {"ratio": sides["hftl"]["seconds"] / sides["stock"]["seconds"], "sides": sides}


class Claim(NamedTuple):
    """How a claim is measured, about how many seconds that takes on two idle cores, and what is to be reached."""

    measure: Callable[[Path], dict[str, Any]]
    seconds: int
    goal: float


CLAIMS: dict[str, Claim] = {
    "text-defaults": Claim(text_defaults, 170, 8.0),
    "text-dynamic": Claim(text_dynamic, 100, 2.2),
    "text-target": Claim(text_target, 180, 4.0),
    "plain-text": Claim(plain_text, 150, 4.0),
    "image-defaults": Claim(image_defaults, 240, 2.5),
    "image-rate": Claim(image_rate, 240, 2.5),
    "plain-image": Claim(plain_image, 200, 1.5),
    "probe-and-full": Claim(probe_and_full, 150, 10.0),
    "campaign": Claim(campaign, 560, 2.0),
    "five-checkpoints": Claim(five_checkpoints, 180, 1.0),
    "peak-share": Claim(peak_share, 45, 0.4),
    "cold-start": Claim(cold_start, 90, 1.3),
    "step-time": Claim(step_time, 60, 1.03),
}


def measure(name: str, folder: Path) -> dict[str, Any]:
    """One claim in a folder of its own, with the time that measuring took."""
    claim, start = CLAIMS[name], time.perf_counter()
    content = claim.measure(folder)
    return {"goal": claim.goal} | content | {"measuring_seconds": time.perf_counter() - start}
