"""The example scripts of transformers as one side of a pair: run by their flags, unchanged, from where they are kept.

They are no part of this project. `HFTL_PUBLIC_SCRIPTS` names the folder with `run_classification.py` and
`run_image_classification.py` of transformers/examples/pytorch. Both ask the Hub for the metric `accuracy`; without a
network they find the same formula in the folder that they run in. The one for images needs torchvision of the same
release as torch (docs/performance.md).
"""

import importlib.util
import json
import os
import sys
from pathlib import Path

from benchmarks.processes import Finished, build_environment, run_timed

ACCURACY = """
import datasets
import evaluate
import numpy as np


class Accuracy(evaluate.Metric):
    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("int32"), "references": datasets.Value("int32")})
        return evaluate.MetricInfo(description="share of equal labels", citation="", features=features)

    def _compute(self, predictions, references):
        return {"accuracy": float(np.mean(np.equal(predictions, references)))}
"""
ALWAYS = "--do_train --do_eval --save_strategy no --report_to none --disable_tqdm true"


def find_script(name: str) -> Path:
    """Where a public script is kept.

    Raises:
        FileNotFoundError: the folder is not named, or has no such script.
    """
    path = Path(os.environ.get("HFTL_PUBLIC_SCRIPTS", "public")) / name
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}. Set HFTL_PUBLIC_SCRIPTS to the folder of the example scripts.")
    return path.resolve()


def run_text_script(folder: Path, data: dict[str, Path], model: str, flags: str) -> Finished:
    """`run_classification.py` on csv files with `text` and a number as `label`; evaluated on the test rows."""
    files = ["--train_file", str(data["train"]), "--validation_file", str(data["test"])]
    columns = ["--text_column_names", "text", "--label_column_name", "label", "--remove_columns", "name"]
    columns += ["--overwrite_cache", "true"]
    return _run("run_classification.py", folder, [*files, *columns, "--model_name_or_path", model], flags)


def run_image_script(folder: Path, photos: Path, model: str, flags: str) -> Finished:
    """`run_image_classification.py` on a folder with a subfolder for each class; evaluated on the test images.

    A head of another size is not loaded unless it is told to, and without the second flag, as its own README says,
    Trainer takes the images away.

    Raises:
        FileNotFoundError: torchvision, which the script imports, is not installed.
    """
    if importlib.util.find_spec("torchvision") is None:
        raise FileNotFoundError("run_image_classification.py needs torchvision: docs/performance.md says how.")
    files = ["--train_dir", str(photos / "train"), "--validation_dir", str(photos / "test")]
    needed = ["--ignore_mismatched_sizes", "true", "--remove_unused_columns", "false"]
    words = [*files, *needed, "--model_name_or_path", model]
    words += ["--image_processor_name", str(write_script_processor(folder / "processor", model))]
    return _run("run_image_classification.py", folder, words, flags)


def write_script_processor(folder: Path, model: str | Path) -> Path:
    """The checkpoint's processor for pixels from 0 to 1: of its normalization the script reads mean and spread."""
    settings = json.loads((Path(model) / "preprocessor_config.json").read_text())
    factor = 255 * settings["rescale_factor"]
    settings |= {name: [value / factor for value in settings[name]] for name in ("image_mean", "image_std")}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "preprocessor_config.json").write_text(json.dumps(settings | {"rescale_factor": 1 / 255}))
    return folder.resolve()


def read_accuracy(folder: Path) -> float:
    """Of the evaluation after training."""
    return json.loads((folder / "out" / "all_results.json").read_text())["eval_accuracy"]


def _run(script: str, folder: Path, words: list[str], flags: str) -> Finished:
    (folder / "accuracy").mkdir(parents=True, exist_ok=True)
    (folder / "accuracy" / "accuracy.py").write_text(ACCURACY)
    command = [sys.executable, str(find_script(script)), *words, "--output_dir", "out", *ALWAYS.split()]
    return run_timed([*command, *flags.split()], folder, build_environment(folder / "caches"))
