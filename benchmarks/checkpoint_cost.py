"""What a committed checkpoint costs beside the raw write of the same bytes.

    python benchmarks/checkpoint_cost.py [--model bundled:minilm-l6] [--repeats 7]

Full fine-tuning of the checkpoint on bundled texts, a few steps, then the same save in turn: the stock Trainer's files
alone (`raw`), these and fsync of each (`synced`), and what hftl does (`committed`): digests, fsync, manifest, rename
and rotation. Writes `benchmarks/results/checkpoint-cost.json`.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from datetime import date
from pathlib import Path

import transformers

from hftl.config import parse_args
from hftl.run_record import describe_environment
from hftl.training import checkpoints
from hftl.training.run import run
from hftl.training.trainer import FineTuningTrainer

RESULTS = Path(__file__).parent / "results" / "checkpoint-cost.json"


class Measure(transformers.TrainerCallback):
    """Saves again and again after the last step, in each way in turn."""

    def __init__(self, repeats: int) -> None:
        self.repeats = repeats
        self.trainer: FineTuningTrainer | None = None
        self.seconds: dict[str, list[float]] = {"raw": [], "synced": [], "committed": []}
        self.verify_seconds: list[float] = []
        self.num_bytes = 0

    def on_train_end(self, args, state, control, **kwargs) -> None:
        """Time each way; what was written before is on disk by then."""
        folder = Path(args.output_dir)
        for _ in range(self.repeats):
            for name in self.seconds:
                os.sync()
                begun = time.perf_counter()
                getattr(self, f"_save_{name}")(folder)
                self.seconds[name].append(time.perf_counter() - begun)
            newest = folder / f"checkpoint-{state.global_step}"
            self.num_bytes = sum(path.stat().st_size for path in newest.rglob("*"))
            begun = time.perf_counter()
            if checkpoints.find_damage(newest) is not None:
                raise RuntimeError("the checkpoint does not verify")
            self.verify_seconds.append(time.perf_counter() - begun)

    def _save_raw(self, folder: Path) -> None:
        target = folder / "raw"
        self.trainer._staging = target
        try:
            transformers.Trainer._save_checkpoint(self.trainer, self.trainer.model, None)
        finally:
            self.trainer._staging = None

    def _save_synced(self, folder: Path) -> None:
        self._save_raw(folder)
        for path in (folder / "raw").rglob("*"):
            checkpoints._sync(path)

    def _save_committed(self, folder: Path) -> None:
        self.trainer._save_checkpoint(self.trainer.model, None)


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bundled:minilm-l6")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--folder", help="where to write; default: a temporary folder")
    options = parser.parse_args()
    measure, prepare = Measure(options.repeats), FineTuningTrainer.add_callback

    def add(trainer: FineTuningTrainer, callback: object) -> None:
        if callback is measure:
            measure.trainer = trainer
        prepare(trainer, callback)

    FineTuningTrainer.add_callback = add
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    words = f"--dataset bundled:wordnet --model_name_or_path {options.model} --mode full --num_train_examples 64"
    words += (
        " --num_validation_examples 16 --evaluate_test false --max_steps 2 --per_device_train_batch_size 8 --use_cpu"
    )
    try:
        run(parse_args([*words.split(), "--output_dir", str(folder / "run")]), callbacks=[measure])
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    medians = {name: round(statistics.median(values), 3) for name, values in measure.seconds.items()}
    result = {
        "date": date.today().isoformat(),
        "command": f"python benchmarks/checkpoint_cost.py --model {options.model} --repeats {options.repeats}",
        "bytes": measure.num_bytes,
        "median_seconds": medians | {"verify": round(statistics.median(measure.verify_seconds), 3)},
        "committed_over_raw": round(medians["committed"] / medians["raw"], 2),
        "committed_over_synced": round(medians["committed"] / medians["synced"], 2),
        "seconds": {name: [round(value, 3) for value in values] for name, values in measure.seconds.items()},
        "environment": describe_environment(),
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({key: result[key] for key in ("bytes", "median_seconds", "committed_over_raw")}))


if __name__ == "__main__":
    main()
