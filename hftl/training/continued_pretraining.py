"""Pretraining on the user's own texts before a run (`--pretrain_file`): does it help, and at which price?

One masked-lm run per checkpoint, file and number of steps, kept in the cache and shared by every run that asks for the
same, so that a comparison makes it once. Its seconds and FLOPs are charged to each of them as if they had made it.
Mode scratch pretrains random weights: what the own texts give without those that the checkpoint has seen.
"""

import contextlib
import dataclasses
import functools
import hashlib
import logging
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hftl.assets import cache_dir, is_bundled, resolve_dataset, resolve_model
from hftl.config import Arguments, parse_args
from hftl.data.inputs import list_texts
from hftl.data.load import load_splits
from hftl.errors import UserError
from hftl.models.load import find_commit, read_config
from hftl.models.modes import MODES
from hftl.run_record import RunRecord
from hftl.runtime.files import compute_sha256
from hftl.tasks import build_task

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

logger = logging.getLogger(__name__)

TASK = "masked-lm"
PRECISION = ("bf16", "fp16")  # of the products, which are those of the run after it
SEED = 0  # one pretraining for all seeds: that it might have come out otherwise is in no interval
VALIDATION_FRACTION, MAX_VALIDATION_TEXTS = 0.2, 1000  # held out for the perplexity alone; of many texts a few suffice


def continue_pretraining(
    args: Arguments, splits: datasets.DatasetDict, train: Callable[[Arguments], RunRecord]
) -> tuple[Arguments, dict[str, Any]]:
    """The same arguments with the further pretrained checkpoint, and what was done, for the run record.

    Args:
        args: of the run.
        splits: its rows, in canonical columns.
        train: makes one run.

    Call `check_pretraining` before.
    """
    if args.model.pretrain_file is None:
        return args, {}
    texts = read_texts(args)
    _warn_of_test_texts(texts, splits, args.model.pretrain_file)
    folder = find_folder(args)
    started = time.perf_counter()
    with _one_at_a_time(folder):
        waited_seconds = time.perf_counter() - started
        is_new = not folder.is_dir()
        if is_new:
            _build(args, folder, len(texts), train)
    _renew_device(args)
    made = RunRecord.read(folder)
    transformers.set_seed(args.training.seed)  # the same state, whether it was made now or was there
    described = {
        "from": args.model.model_name_or_path,
        "steps": args.model.pretrain_steps,
        "num_texts": made.data["num_train_examples"],
        "num_examples_seen": made.cost["num_examples_seen"],
        "perplexity": made.metrics["validation"]["perplexity"],
        "train_seconds": made.cost["train_seconds"],
        "train_flops": made.cost["train_flops"],
        "is_new": is_new,
        "waited_seconds": waited_seconds,
    }
    model = dataclasses.replace(args.model, model_name_or_path=str(folder), model_revision="main")
    return dataclasses.replace(args, model=model), described


def _renew_device(args: Arguments) -> None:
    """Let the run set up its process again: a run inside of it has left its own device and precision behind."""
    args.training.__dict__.pop("_setup_devices", None)
    _ = args.training.device  # which resets accelerate's state


def find_folder(args: Arguments) -> Path:
    """Where the checkpoint is, or will be when somebody has made it."""
    return Path(cache_dir()) / "pretrained" / _compute_key(args)


def find_texts(name: str) -> str:
    """The file that `--pretrain_file` stands for; of a bundled data set it is the one with the rows of train.

    Raises:
        UserError: there is none.
    """
    if is_bundled(name):
        return resolve_dataset(name)["train"]
    if not Path(name).expanduser().is_file():
        raise UserError(f"--pretrain_file: there is no file {name} (working folder: {Path.cwd()}).")
    return name


def check_pretraining(args: Arguments) -> None:
    """Refuse a pretraining that makes no sense, before anything is read or trained.

    Raises:
        UserError: it does not; says what is possible instead.
    """
    if args.model.pretrain_file is None:
        return
    task = build_task(args.data.task)
    if args.model.mode not in MODES or task.modality != "text" or not task.has_new_head:
        raise UserError(
            "--pretrain_file pretrains an encoder of texts, before --mode full, peft, probe or scratch; this is "
            f"--mode {args.model.mode} of {task.name}."
        )
    if args.training.push_to_hub and args.model.mode == "peft":
        raise UserError(
            "--push_to_hub needs a base on the Hub, and with --pretrain_file the adapter's is made here. Leave it "
            "out, and then `hftl push RUN --merge`."
        )
    if args.training.world_size > 1:
        raise UserError(
            "--pretrain_file works in one process. Train it first, `hftl train --task masked-lm --train_file "
            f"{args.model.pretrain_file}`, and name its folder as --model_name_or_path."
        )
    find_texts(args.model.pretrain_file)
    read_config(args.model, build_task(TASK))  # which says what has no such head


@contextlib.contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Let a second run that wants the same wait until the first has made it; the lock ends with its process.

    `lockf` as in `hftl.runtime.lock`, which refuses where this waits.
    """
    path = Path(cache_dir()) / "pretraining-locks" / folder.name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            if fcntl is not None:
                fcntl.lockf(file, fcntl.LOCK_EX)
        except OSError as error:
            logger.warning("%s cannot be locked (%s): another run may make the same pretraining.", path, error)
        yield


def _warn_of_test_texts(texts: datasets.Dataset, splits: datasets.DatasetDict, path: str) -> None:
    """Texts of test may be read without their labels, but then test is not what new texts would be."""
    if "test" not in splits:
        return
    known = {text for column in texts.column_names for text in texts[column] if isinstance(text, str)}
    found = sum(any(text in known for text in row) for row, _ in list_texts(splits["test"]))
    if found:
        logger.warning(
            "%d of %d test texts are in %s: they are read without labels, but new texts would not have been.",
            *(found, len(splits["test"]), path),
        )


def hash_texts(name: str) -> str:
    """The sha256 of the file that `--pretrain_file` stands for; a comparison asks once a cell."""
    path = Path(find_texts(name)).expanduser()
    status = path.stat()
    return _hash(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=16)
def _hash(path: Path, *state: int) -> str:
    return compute_sha256(path)


def _compute_key(args: Arguments) -> str:
    checkpoint = Path(resolve_model(args.model.model_name_or_path))
    files = [*checkpoint.glob("*.safetensors"), *checkpoint.glob("*.json")] if checkpoint.is_dir() else []
    parts = [
        hash_texts(args.model.pretrain_file),
        str(args.model.model_name_or_path),
        # A folder may have been trained again.
        *(_hash(path, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(files)),
        str(find_commit(args.model) or args.model.model_revision),
        *(f"{name} {args.given[name]}" for name in PRECISION if name in args.given),
        *map(str, (args.model.mode == "scratch", args.model.config_overrides, args.model.pretrain_steps)),
        str(args.data.max_length),
        metadata.version("hftl"),
        torch.__version__,
        transformers.__version__,
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]


def read_texts(args: Arguments) -> datasets.Dataset:
    """The texts, in the columns of their file."""
    words = ["--task", TASK, "--train_file", find_texts(args.model.pretrain_file)]
    words += ["--use_cpu", "true"] if args.training.use_cpu else []
    return load_splits(parse_args(words).data)["train"]


def list_settings(args: Arguments, num_texts: int) -> dict[str, Any]:
    """The flags of the pretraining as a run of its own, `mode` included."""
    model = args.model
    settings = {
        "task": TASK,
        "mode": "scratch" if model.mode == "scratch" else "full",
        "train_file": find_texts(model.pretrain_file),
        "validation_fraction": min(VALIDATION_FRACTION, MAX_VALIDATION_TEXTS / num_texts),
        "model_name_or_path": model.model_name_or_path,
        "model_revision": model.model_revision,
        "config_overrides": model.config_overrides,
        "max_steps": model.pretrain_steps,
        "max_length": args.data.max_length,
        "use_cpu": True if args.training.use_cpu else None,
        **{name: args.given.get(name) for name in PRECISION},
        "seed": SEED,
    }
    return {name: value for name, value in settings.items() if value is not None}


def _build(args: Arguments, folder: Path, num_texts: int, train: Callable[[Arguments], RunRecord]) -> None:
    """A masked-lm run, which is there when it is whole."""
    logger.info("Pretraining on %s first: %d steps.", args.model.pretrain_file, args.model.pretrain_steps)
    settings = list_settings(args, num_texts) | {"disable_tqdm": args.training.disable_tqdm}
    mode = settings.pop("mode")
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as staging:
        built = Path(staging) / "run"
        try:
            train(parse_args([*words, "--output_dir", str(built)], mode=mode))
        except UserError as error:  # its flags are of the labelled data
            raise UserError(f"--pretrain_file {args.model.pretrain_file}, as texts one a row: {error}") from error
        if mode != "scratch":
            _keep_pooling_layer(args, built)
        try:
            built.rename(folder)
        except OSError:
            if not folder.is_dir():  # where the disk knows no locks another run may have made the same
                raise


def _keep_pooling_layer(args: Arguments, folder: Path) -> None:
    """Take over what the body has and a network that finds words has not: a classifier reads through it."""
    original, report = transformers.AutoModel.from_pretrained(
        resolve_model(args.model.model_name_or_path),
        revision=args.model.model_revision,
        dtype=torch.float32,
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    path = folder / "model.safetensors"
    weights = load_file(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    for name, tensor in original.state_dict().items():
        full = f"{original.base_model_prefix}.{name}"
        if full not in weights and name not in report["missing_keys"]:
            weights[full] = tensor.contiguous()
    save_file(weights, path, metadata=metadata)
