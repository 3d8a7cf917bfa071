"""What was run, what it scored and what it cost: the files that later stages read instead of opening a checkpoint.

A run folder holds `run.json` (one `RunRecord`) and `predictions.parquet` (one row for each test example). Files are
replaced whole or not at all, and tokens of the Hub are never written. This module must not compute a score.
"""

import dataclasses
import hashlib
import json
import math
import numbers
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from hftl.errors import UserError, unknown_name
from hftl.processor import describe_processor

if TYPE_CHECKING:
    import numpy as np

SCHEMA = 1  # raise it when a field changes its meaning
RECORD_FILE = "run.json"
PREDICTIONS_FILE = "predictions.parquet"
CANARY_FILE = "canary.parquet"  # a few rows and their answers, for whoever loads the model later
STATUSES = ("completed", "diverged", "failed", "interrupted")
# Tokens of users, applications (OAuth) and jobs (JWT) and of organizations; the name and password of an address.
TOKEN = re.compile(r"(hf_)[A-Za-z0-9]{20,}|((?:hf_(?:oauth|jwt)|api_org)_)(?=[\w.-]{16})[\w-]+(?:\.[\w-]+)*")
PASSWORD = re.compile(r"(?<=://)[^\s/@:\"'<>]+:[^\s/@\"'<>]+(?=@)")
PACKAGES = (
    *("hftl", "torch", "transformers", "peft", "accelerate", "datasets", "evaluate", "huggingface_hub", "tokenizers"),
    *("safetensors", "numpy", "scikit-learn", "bitsandbytes"),
)


@dataclass
class RunRecord:
    """One run. A number that could not be measured is None; so is one that was not finite (JSON has no NaN).

    Attributes:
        task: Key of `TASKS`.
        mode: full, peft, scratch or probe.
        adapter: PEFT method, or None for the other modes.
        model: name, revision, num_parameters, num_trainable_parameters; of an adapter over a local folder `weights`,
            the digest of what it was trained over (see `hftl.models.weights`).
        data: source, fingerprint, num_{train,validation,test}_examples, label_names, audit.
        config: Every setting, flat; `config_hash` identifies it.
        metrics: Split (validation, test) -> metric name -> number or table.
        cost: wall_seconds and its parts (see `hftl.cost.ledger`), peak_memory_bytes, train_flops, num_examples_seen,
            num_tokens_seen, padding_fraction, num_steps, artifact_bytes (the saved model or adapter), rates,
            shares and a `diagnosis` (see `hftl.cost.diagnosis`).
        environment: What `describe_environment` returns.
        history: What Trainer logged on the way: losses and validation scores, with their step.
        error: Why the run did not complete.
        folder: Where it was written or read; not a part of the file.
        files: Name -> bytes and sha256 of what was saved, the model's files and `canary.parquet`.
    """

    folder: ClassVar[Path | None] = None

    status: str
    task: str
    mode: str
    seed: int
    adapter: str | None = None
    model: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    config_hash: str = ""
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    cost: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    error: str | None = None
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise unknown_name("status", self.status, STATUSES)

    @property
    def spent_seconds(self) -> float:
        """What this very run took: `wall_seconds` without a pretraining that another one had made before."""
        pretrained = self.model.get("pretrained") or {}
        is_charged = pretrained and not pretrained.get("is_new", True)
        return self.cost.get("wall_seconds", 0.0) - (pretrained["train_seconds"] if is_charged else 0.0)

    def write(self, folder: str | os.PathLike) -> Path:
        """Write `run.json` into `folder`, which is made if need be, and return its path."""
        self.folder = Path(folder)
        return write_json(Path(folder) / RECORD_FILE, dataclasses.asdict(self))

    @classmethod
    def read(cls, folder: str | os.PathLike) -> "RunRecord":
        """Read the record of a run folder.

        Raises:
            UserError: There is no `run.json`, it is broken, or another version of its format is in it.
        """
        path = Path(folder) / RECORD_FILE
        fields = _read_json_object(path)
        if fields.get("schema") != SCHEMA:
            raise UserError(
                f"{path} has schema {fields.get('schema')!r}; this version of hftl reads {SCHEMA}. "
                "Read it with the version that wrote it (see environment.packages.hftl in the file), or run it again."
            )
        try:
            record = cls(**fields)
        except TypeError as error:
            raise UserError(f"{path} does not hold the fields of a run: {error}. Run it again.") from error
        record.folder = Path(folder)
        return record


def write_predictions(folder: str | os.PathLike, columns: Mapping[str, Any]) -> Path:
    """Write `predictions.parquet`, one row for each example, and return its path.

    Args:
        folder: The run folder, made if need be.
        columns: Name -> [N], or [N, C], which becomes a list in each row; `row_id` among them, the position of the
            example in its split as loaded.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrays = {name: np.asarray(values) for name, values in columns.items()}
    table = pa.table({name: pa.array(list(a) if a.ndim > 1 else a) for name, a in arrays.items()})
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer)
    return write_atomically(Path(folder) / PREDICTIONS_FILE, buffer.getvalue().to_pybytes())


def read_predictions(folder: str | os.PathLike) -> dict[str, "np.ndarray"]:
    """Read what `write_predictions` wrote: column name -> array of shape [N] or [N, C].

    Raises:
        UserError: There is no such file, or it is broken.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(folder) / PREDICTIONS_FILE
    if not path.is_file():
        raise UserError(f"There is no {PREDICTIONS_FILE} in {folder}; only a run that completed has one.")
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} cannot be read: {error}. Run it again.") from error
    arrays = {}
    for name in table.column_names:
        column = table[name].combine_chunks()
        is_list = pa.types.is_list(column.type)
        arrays[name] = np.stack(column.to_numpy(zero_copy_only=False)) if is_list else np.asarray(column)
    return arrays


def write_json(path: Path, content: Mapping[str, Any]) -> Path:
    """Write a JSON file whole, without tokens of the Hub; what is not finite becomes null."""
    text = json.dumps(_to_json(content), indent=2, ensure_ascii=False, allow_nan=False)
    return write_atomically(path, (redact(text) + "\n").encode())


def compute_config_hash(config: Mapping[str, Any]) -> str:
    """16 hexadecimal digits that do not depend on the order of the keys."""
    text = json.dumps(_to_json(config), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def count_cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe_environment() -> dict[str, Any]:
    """Where a run took place, without host, user, path or environment variable."""
    import torch

    has_cuda = torch.cuda.is_available()
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": describe_processor(),
        "num_threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if has_cuda else "cpu",
        "num_devices": torch.cuda.device_count() if has_cuda else 1,
        "packages": _list_packages(),
        "git_commit": _read_git_commit(),
    }


def redact(text: str) -> str:
    """Take out tokens of the Hub and passwords in addresses, which error texts and configurations may quote."""
    return PASSWORD.sub("[redacted]", redact_tokens(text))


def redact_tokens(text: str) -> str:
    """Take out tokens of the Hub: all by their form, and those of the environment by value."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if len(value := os.environ.get(name, "").strip()) >= 8:  # a shorter one is no token, and may be part of words
            text = text.replace(value, "hf_[redacted]")
    return TOKEN.sub(lambda match: f"{match[1] or match[2]}[redacted]", text)


def write_atomically(path: Path, content: bytes) -> Path:
    """Make `path` hold `content`; after a crash at any point it holds the old or the new one, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _to_json(value: Any) -> Any:
    """Plain JSON types. NumPy scalars become numbers, and what is not finite becomes None."""
    if isinstance(value, Mapping):
        return {str(key): _to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json(item) for item in value]
    if isinstance(value, numbers.Integral):
        return value if isinstance(value, bool) else int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else None
    return value


def _read_json_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"There is no {path.name} in {path.parent}; give a folder that `hftl train` wrote.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # broken JSON, or not UTF-8
        raise UserError(f"{path} is not valid JSON: {error}. Run it again.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}; expected one JSON object. Run it again.")
    return content


def _list_packages() -> dict[str, str]:
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _read_git_commit() -> str | None:
    """Commit of hftl's own checkout, "-dirty" when it has uncommitted changes; None when it is installed."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
