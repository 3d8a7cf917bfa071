"""How is one cell run? In a process that has run others before, into a folder that appears whole or not at all.

A cell's folder holds what a run folder holds, without the weights unless they are to be kept, and `cell.json`.
"""

import dataclasses
import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from hftl.allocator import give_back_freed_memory
from hftl.baselines import BASELINES, run_baseline
from hftl.compare.plan import Cell, parse_cell
from hftl.config import Arguments
from hftl.errors import Interrupted, OutOfResources, TrainingDiverged
from hftl.models.weights import digest_weights
from hftl.pretraining import hash_texts
from hftl.records import CANARY_FILE, RECORD_FILE, RunRecord, describe_environment, redact, write_atomically
from hftl.run import run

CELL_FILE = "cell.json"
STAGING = "_tmp-"
# Packages whose version may change a result.
VERSIONED = ("torch", "transformers", "peft", "accelerate", "datasets", "tokenizers", "numpy", "scikit-learn")
# Parts of hftl that never touch a number of a run.
OUTSIDE_A_RUN = ("cli/", "__main__.py", "report", "compare", "cost/prices.py", "cost/prices.yaml", "cost/energy.py")


@dataclasses.dataclass(frozen=True)
class Job:
    """A cell, where its folder goes, and how it is to be run. What is sent to a worker.

    Attributes:
        key: of everything that decides the result; a part of the folder's name.
        accelerate_config: start the cell by `accelerate launch` with this file, for a network that needs several
            devices; None runs it in the worker itself.
    """

    cell: Cell
    folder: str
    key: str
    keep_models: bool = False
    accelerate_config: str | None = None


def compute_key(cell: Cell, data_fingerprint: str) -> str:
    """12 hexadecimal digits of what decides the result of a cell: settings, data, weights, code and versions."""
    content = {"settings": cell.settings, "data": data_fingerprint, "code": hash_code(), "versions": read_versions()}
    if path := cell.settings.get("pretrain_file"):
        content["texts"] = hash_texts(path)
    if digest := digest_weights(cell.settings.get("model_name_or_path")):  # a folder may be trained again in place
        content["weights"] = digest
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


@functools.cache
def hash_code() -> str:
    """12 hexadecimal digits of the sources that a run goes through."""
    root, digest = Path(__file__).parents[1], hashlib.sha256()
    for path in sorted([*root.rglob("*.py"), *root.rglob("*.yaml")]):
        name = path.relative_to(root).as_posix()
        if not name.startswith(OUTSIDE_A_RUN):
            digest.update(name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def read_versions() -> dict[str, str]:
    """Versions of the packages that may change a result."""
    return {name: metadata.version(name) for name in VERSIONED}


def run_job(job: Job) -> None:
    """Run a cell and put its folder in place, whatever became of it; only an interrupt leaves nothing.

    The folder is written under another name and renamed when everything is on disk: after a kill at any moment there
    is a whole cell or none.
    """
    target = Path(job.folder)
    staging = target.with_name(f"{STAGING}{target.name}-{os.getpid()}")
    shutil.rmtree(staging, ignore_errors=True)
    give_back_freed_memory()
    started = time.time()
    try:
        _run(job, staging, started)
    except (KeyboardInterrupt, SystemExit):
        shutil.rmtree(staging, ignore_errors=True)
        raise
    except Exception as error:  # a failed cell is a result: it is kept and shown
        _record_failure(job, staging, error, started)
    if not job.keep_models:
        for file in [*staging.glob("*.safetensors"), *staging.glob(CANARY_FILE)]:  # without weights it is of no use
            file.unlink()
    for checkpoint in staging.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    content = dataclasses.asdict(job.cell) | {"key": job.key, "code": hash_code()}
    write_atomically(staging / CELL_FILE, json.dumps(content, indent=1).encode())
    publish(staging, target)


def publish(staging: Path, target: Path) -> None:
    """Rename a finished folder into place; one that is already there stays."""
    try:
        staging.rename(target)
    except OSError:
        if not (target / CELL_FILE).is_file():
            raise
        shutil.rmtree(staging, ignore_errors=True)


def record_loss(job: Job, message: str) -> None:
    """Put a failed cell in place for a worker that died twice on it."""
    target = Path(job.folder)
    staging = target.with_name(f"{STAGING}{target.name}-{os.getpid()}")
    _record_failure(job, staging, OutOfResources(message), time.time())
    content = dataclasses.asdict(job.cell) | {"key": job.key, "code": hash_code()}
    write_atomically(staging / CELL_FILE, json.dumps(content, indent=1).encode())
    publish(staging, target)


def _run(job: Job, staging: Path, started: float) -> None:
    if job.accelerate_config is not None:
        _launch(job, staging)
        return
    args: Arguments = parse_cell(job.cell, staging)
    if args.model.mode in BASELINES:
        run_baseline(args, started=started)
    else:
        run(args, started=started)


def _launch(job: Job, staging: Path) -> None:
    """The same cell as a program of its own on several devices."""
    settings = {name: value for name, value in job.cell.settings.items() if value is not None}
    file = staging.with_name(f"{staging.name}.yaml")
    write_atomically(file, json.dumps(settings).encode())  # JSON is YAML
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(job.accelerate_config)]
    command = [*launch, "-m", "hftl", "train", str(file), "--output_dir", str(staging), "--disable_tqdm", "true"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    finally:
        file.unlink(missing_ok=True)
    if result.returncode == Interrupted.exit_code:
        raise Interrupted(result.stderr.strip()[-2000:])
    if result.returncode:
        failure = {TrainingDiverged.exit_code: TrainingDiverged, OutOfResources.exit_code: OutOfResources}
        raise failure.get(result.returncode, RuntimeError)(result.stderr.strip()[-2000:])


def _record_failure(job: Job, staging: Path, error: Exception, started: float) -> None:
    """`run.json` of a cell that did not complete; what the run itself wrote is kept."""
    staging.mkdir(parents=True, exist_ok=True)
    if (staging / RECORD_FILE).is_file() and RunRecord.read(staging).status != "completed":
        return
    settings: dict[str, Any] = job.cell.settings
    RunRecord(
        status="diverged" if isinstance(error, TrainingDiverged) else "failed",
        task=str(settings.get("task", "text-classification")),
        mode=settings["mode"],
        seed=job.cell.seed,
        model={"name": settings.get("model_name_or_path")},
        config=settings,
        cost={"wall_seconds": time.time() - started, "startup_seconds": time.time() - started},
        environment=describe_environment(),
        error=redact(f"{type(error).__name__}: {error}"),
    ).write(staging)
