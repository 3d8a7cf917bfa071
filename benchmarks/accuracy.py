"""What each mode scores with its defaults: the README's table and the choice of where the head starts.

    python benchmarks/accuracy.py [--seeds 0 1 2] [--jobs 2] [--only wordnet]

Every cell is one `hftl train` process with one thread; finished cells are not run again. Writes
`benchmarks/results/accuracy.json`: one row a cell, with the command that made it.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "accuracy.json"
MODES = ("peft", "full", "scratch", "probe")
CONFIGS = {"wordnet": "recipes/configs/wordnet.yaml", "fashion-mnist": "recipes/configs/fashion-mnist.yaml"}
# The start of the head that is not the default.
OTHER_START = {
    ("wordnet", "full"): "probe",
    ("wordnet", "peft"): "random",
    ("fashion-mnist", "full"): "probe",
    ("fashion-mnist", "peft"): "probe",
}


def list_cells(seeds: list[int], only: list[str], modes: list[str]) -> list[tuple[str, str, str, int]]:
    """(data, mode, head start, seed): first every mode with its defaults, then the other start of the head."""
    cells = [(data, mode, "auto", seed) for seed in seeds for data in only for mode in modes]
    return cells + [
        (data, mode, OTHER_START[data, mode], seed)
        for seed in seeds
        for data, mode in OTHER_START
        if data in only and mode in modes
    ]


def name_folder(cell: tuple[str, str, str, int], folder: Path) -> Path:
    """Where a cell is kept."""
    data, mode, start, seed = cell
    return folder / f"{data}-{mode}-{start}-seed{seed}"


def run_cell(cell: tuple[str, str, str, int], folder: Path) -> dict:
    """Train one cell unless its record exists, and return its row."""
    data, mode, start, seed = cell
    target = name_folder(cell, folder)
    command = f"hftl train {CONFIGS[data]} --mode {mode} --head_init {start} --seed {seed}"
    if not (target / "run.json").exists():
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        words = [sys.executable, "-m", *command.split(), "--output_dir", str(target), "--disable_tqdm", "true"]
        log = folder / f"{target.name}.log"
        with log.open("w") as output:
            subprocess.run(words, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, check=True)
        (target / "model.safetensors").unlink(missing_ok=True)
    record = json.loads((target / "run.json").read_text())
    row = {"data": data, "mode": mode, "head_init": start, "head": record["model"]["head"]["init"], "seed": seed}
    row |= {"accuracy": record["metrics"]["test"]["accuracy"], "log_loss": record["metrics"]["test"]["log_loss"]}
    row |= {
        name: record["cost"][name] for name in ("wall_seconds", "train_seconds", "train_flops", "num_examples_seen")
    }
    row |= {"commit": record["environment"]["git_commit"]}
    row |= {"num_trainable_parameters": record["model"]["num_trainable_parameters"], "command": command}
    print(f"{target.name}: accuracy {row['accuracy']:.4f}, {row['wall_seconds']:.0f} s", flush=True)
    return row | {"config_hash": record["config_hash"], "environment": record["environment"]}


def main() -> None:
    """Run what is missing and write the rows of everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2, help="processes side by side, each with one thread")
    parser.add_argument("--only", nargs="+", choices=CONFIGS, default=list(CONFIGS))
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--finished", action="store_true", help="write what is there, run nothing")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "accuracy", help="where the runs are kept")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    cells = list_cells(options.seeds, options.only, options.modes)
    if options.finished:
        cells = [cell for cell in cells if (name_folder(cell, options.folder) / "run.json").exists()]
    with ThreadPoolExecutor(options.jobs) as pool:
        rows = list(pool.map(lambda cell: run_cell(cell, options.folder), cells))
    environment = rows[0]["environment"]
    content = {
        "date": date.today().isoformat(),
        "environment": environment,
        "rows": [{key: value for key, value in row.items() if key != "environment"} for row in rows],
    }
    RESULTS.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
