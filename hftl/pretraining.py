"""More pretraining on the user's own texts before a run (`--pretrain_file`): does it help, and at which price?

One masked-lm run per checkpoint, file and number of steps, kept in the cache and shared by every run that asks for the
same, so that a comparison makes it once. Its seconds and FLOPs are charged to each of them as if they had made it.
"""

import contextlib
import dataclasses
import hashlib
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hftl.assets import cache_dir, resolve_model
from hftl.config import Arguments, parse_args
from hftl.data.inputs import list_texts
from hftl.data.load import load_splits
from hftl.errors import UserError
from hftl.models.load import read_config
from hftl.records import RunRecord
from hftl.tasks import build_task

logger = logging.getLogger(__name__)

TASK = "masked-lm"
SEED = 0  # one pretraining for all seeds: that it might have come out otherwise is in no interval


def continue_pretraining(
    args: Arguments, splits: datasets.DatasetDict, train: Callable[[Arguments], RunRecord]
) -> tuple[Arguments, dict[str, Any]]:
    """The same arguments with the further pretrained checkpoint, and what was done, for the run record.

    Args:
        args: of the run.
        splits: its rows, in canonical columns.
        train: makes one run.

    Raises:
        UserError: the network finds no hidden words, or what is asked for makes no sense.
    """
    path = args.model.pretrain_file
    if path is None:
        return args, {}
    _check(args)
    texts = load_splits(parse_args(["--task", TASK, "--train_file", path]).data)["train"]
    _warn_of_test_texts(texts, splits, path)
    folder = Path(cache_dir()) / "pretrained" / _compute_key(args)
    is_new = not folder.is_dir()
    if is_new:
        _build(args, folder, train)
    made = RunRecord.read(folder)
    transformers.set_seed(args.training.seed)  # the same state, whether it was made now or was there
    described = {
        "from": args.model.model_name_or_path,
        "steps": args.model.pretrain_steps,
        "num_texts": made.data["num_train_examples"],
        "perplexity": made.metrics["validation"]["perplexity"],
        "train_seconds": made.cost["train_seconds"],
        "train_flops": made.cost["train_flops"],
        "is_new": is_new,
    }
    model = dataclasses.replace(args.model, model_name_or_path=str(folder), model_revision="main")
    return dataclasses.replace(args, model=model), described


def _check(args: Arguments) -> None:
    task = build_task(args.data.task)
    if args.model.mode == "scratch" or task.modality != "text" or not task.has_new_head:
        raise UserError(
            "--pretrain_file goes on with the pretraining of an encoder of texts, before --mode full, peft or probe; "
            f"this is --mode {args.model.mode} of {task.name}."
        )
    if args.training.push_to_hub and args.model.mode == "peft":
        raise UserError("--push_to_hub needs a base on the Hub, and with --pretrain_file the adapter's is made here.")
    if args.training.world_size > 1:
        raise UserError(
            "--pretrain_file works in one process. Train it first, `hftl train --task masked-lm --train_file "
            f"{args.model.pretrain_file}`, and name its folder as --model_name_or_path."
        )
    read_config(args.model, build_task(TASK))  # which says what has no such head


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


def _hash(path: str | Path) -> str:
    return hashlib.sha256(Path(path).expanduser().read_bytes()).hexdigest()


def _compute_key(args: Arguments) -> str:
    checkpoint = Path(resolve_model(args.model.model_name_or_path))
    files = [*checkpoint.glob("*.safetensors"), *checkpoint.glob("*.json")] if checkpoint.is_dir() else []
    parts = [
        _hash(args.model.pretrain_file),
        str(args.model.model_name_or_path),
        *(_hash(path) for path in sorted(files)),  # a folder may have been trained again
        args.model.model_revision,
        str(args.model.pretrain_steps),
        str(args.data.max_length),
        torch.__version__,
        transformers.__version__,
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]


def _build(args: Arguments, folder: Path, train: Callable[[Arguments], RunRecord]) -> None:
    """A masked-lm run, which is there when it is whole."""
    logger.info("Pretraining on %s first: %d steps.", args.model.pretrain_file, args.model.pretrain_steps)
    words = ["--task", TASK, "--train_file", args.model.pretrain_file, "--max_steps", str(args.model.pretrain_steps)]
    words += ["--model_name_or_path", args.model.model_name_or_path, "--model_revision", args.model.model_revision]
    words += ["--max_length", str(args.data.max_length)] if args.data.max_length else []
    words += ["--use_cpu"] if args.training.use_cpu else []
    words += ["--disable_tqdm", str(args.training.disable_tqdm).lower(), "--seed", str(SEED)]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as staging:
        built = Path(staging) / "run"
        train(parse_args([*words, "--output_dir", str(built)], mode="full"))
        _keep_pooling_layer(args, built)
        with contextlib.suppress(OSError):  # another run has made the same meanwhile
            built.rename(folder)


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
