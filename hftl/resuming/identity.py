"""May this run go on from that checkpoint? Refuses one of another run, before anything is trained.

Trainer 5.23 compares nothing: with another scale, dropout or start of LoRA it goes on with another network, with other
shapes it stops with an error of torch.
"""

import dataclasses
import json
import logging
import math
from collections.abc import Collection
from enum import Enum
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import nn

from hftl.config import ARGUMENT_CLASSES, OLD_NAMES, Arguments
from hftl.errors import UserError
from hftl.examples import Examples
from hftl.models.adapters import Adapter, adapter_of
from hftl.models.modes import find_mode
from hftl.records import compute_config_hash
from hftl.resuming.checkpoints import read_manifest
from hftl.run_folder import find_checkpoint
from hftl.yaml_file import read_yaml

logger = logging.getLogger(__name__)

# Of an adapter_config.json: who wrote it, and what it is opened for.
NOT_COMPARED = {"peft_version", "auto_mapping", "inference_mode", "revision"}
VERSIONED = ("hftl", "torch", "transformers", "peft", "accelerate", "datasets", "tokenizers", "numpy")
# Settings that change no number, or that are compared by what they lead to: rows, weights, the size of a step.
HARMLESS = (
    *("logging_", "log_", "save_", "hub_", "push_", "report_to", "run_name", "project", "trackio_", "show_example"),
    "auto_batch",
    *("dataloader_num_workers", "dataloader_p", "per_device_", "ddp_"),
    *("num_test_examples", "test_file", "evaluate_test"),
)
COMPARED_BY_CONTENT = {"dataset", "dataset_config", "dataset_revision", "train_file", "validation_file"}
COMPARED_BY_CONTENT |= {"model_name_or_path", "model_revision", "gradient_accumulation_steps"}
DIVISION = ("per_device_train_batch_size", "gradient_accumulation_steps")  # of the rows of a step in a process
NUM_SAMPLES = 64  # values of each tensor that stand for it
FLAGS = {"r": "--lora_r", "alpha": "--lora_alpha"}  # where a field has another name
ADVICE = "Give the settings of the checkpoint, or leave --resume_from_checkpoint out to start again."


def check_checkpoint(args: Arguments) -> None:
    """Look at the checkpoint's files, before data or weights are read.

    Raises:
        UserError: it is of another mode or method, or of one that cannot go on.
    """
    adapter, checkpoint = adapter_of(args.model), find_checkpoint(args.training)
    if adapter is not None and not adapter.is_resumable and (checkpoint or args.training.load_best_model_at_end):
        flag = "--resume_from_checkpoint" if checkpoint else "--load_best_model_at_end"
        raise UserError(
            f"{flag}: {adapter.title} cannot be loaded back from a checkpoint, which holds only the ranks that are "
            "left, without what their importance was. Leave the flag out, or use --adapter lora."
        )
    if checkpoint is None:
        return
    if not find_mode(args.model.mode).is_trained:
        raise UserError(f"--mode {args.model.mode} has no training steps: there is nothing to resume.")
    _refuse_pickles(Path(checkpoint))
    _compare_runs(args, adapter, Path(checkpoint))
    _compare_files(args, adapter, Path(checkpoint))


def _refuse_pickles(checkpoint: Path) -> None:
    """Weights that can run code when they are loaded; Trainer takes them where there are no others."""
    found = [name for name in ("adapter_model.bin", "pytorch_model.bin") if (checkpoint / name).is_file()]
    if found and not any(checkpoint.glob("*.safetensors")):
        raise UserError(
            f"{checkpoint} holds its weights in {found[0]}, a pickle file, which can run code when it is loaded. hftl "
            "goes on from safetensors only: convert it once, with `save_pretrained` of the loaded model."
        )


def check_adapter_of_checkpoint(args: Arguments, network: nn.Module) -> None:
    """Compare the adapter that this run has built with the one of the checkpoint.

    Raises:
        UserError: they differ; says in what.
    """
    adapter, checkpoint = adapter_of(args.model), find_checkpoint(args.training)
    if checkpoint is None or not _is_saved_alone(adapter):
        return
    file = Path(checkpoint, "adapter_config.json")
    if not file.is_file():
        return
    found = _plain(json.loads(file.read_text(encoding="utf-8")))
    asked = _plain(network.peft_config["default"].to_dict())
    for config in (found, asked):  # a folder may have been moved
        config["base_model_name_or_path"] = Path(config.get("base_model_name_or_path") or "").name
    names = (found.keys() & asked.keys()) - NOT_COMPARED
    different = sorted(name for name in names if found[name] != asked[name])
    if different:
        named = [name for name in different if not isinstance(asked[name], dict)] or different  # ranks follow
        named = ["peft_type"] if "peft_type" in named else named
        lines = "; ".join(_describe(name, found[name], asked[name]) for name in named)
        raise UserError(f"The adapter in {checkpoint} is another one than this run has. {lines}. {ADVICE}")


def is_resumable(args: Arguments) -> bool:
    """Whether a checkpoint of this run can be gone on from."""
    adapter = adapter_of(args.model)
    return find_mode(args.model.mode).is_trained and (adapter is None or adapter.is_resumable)


def describe_identity(args: Arguments, examples: Examples, loaded: Any) -> dict[str, Any]:
    """What a checkpoint says about its run: whatever another run must share to go on from it.

    Args:
        args: of the run, with its defaults set.
        examples: its rows.
        loaded: the network before anything of it was changed.
    """
    settings = {name: value for name, value in args.resolved().items() if not name.startswith(HARMLESS)}
    settings = {name: value for name, value in settings.items() if name not in COMPARED_BY_CONTENT}
    return {
        "settings": settings,
        "config_hash": compute_config_hash(settings),
        "data": {split: examples.fingerprints[split] for split in ("train", "validation")},
        "label_names": list(examples.labels.names),
        "model": {
            "name": Path(args.model.model_name_or_path).name,
            "weights": _sample_weights(loaded.network, loaded.new_parameters),
        },
        **describe_division(args.training),
        "versions": {name: metadata.version(name) for name in VERSIONED},
    }


def describe_division(training: Any) -> dict[str, int]:
    """How the rows of a step are divided."""
    return {
        "world_size": training.world_size,
        **{name: getattr(training, name) for name in DIVISION},
    }


def check_identity(args: Arguments, identity: dict[str, Any]) -> None:
    """Compare this run with the one that the checkpoint is of.

    Raises:
        UserError: they differ and `--allow_change` was not given; names each difference.
    """
    checkpoint = find_checkpoint(args.training)
    if checkpoint is None:
        return
    found = read_manifest(Path(checkpoint))
    if args.model.auto_batch and _count_rows(found) == _count_rows(identity):  # divided otherwise, to fit
        found |= {name: identity[name] for name in DIVISION}
    lines = (
        _list_differences(found, json.loads(json.dumps(identity))) if found else ["it has no manifest to compare with"]
    )
    if lines and not args.model.allow_change:
        raise UserError(
            f"{checkpoint} is not of this run. {'; '.join(lines)}. {ADVICE[:-1]}, or insist with --allow_change true: "
            "the result is then that of neither run."
        )
    if lines:
        logger.warning("The run goes on from %s in spite of: %s.", checkpoint, "; ".join(lines))
    for name, version in found.get("versions", {}).items():
        if identity["versions"].get(name) != version:
            logger.warning(
                "%s %s wrote the checkpoint, and %s goes on from it: results may differ in the last digits.",
                *(name, version, identity["versions"].get(name)),
            )


def read_head(checkpoint: str | None) -> dict[str, Any]:
    """What the run of the checkpoint did to start its head; the weights of the checkpoint have it in them."""
    return read_manifest(Path(checkpoint)).get("head", {"init": "checkpoint"}) if checkpoint else {}


def _list_differences(found: dict[str, Any], asked: dict[str, Any]) -> list[str]:
    """One sentence for each, settings first."""
    defaults = _with_old_names(
        {
            item.name: item.default_factory() if callable(item.default_factory) else item.default
            for cls in ARGUMENT_CLASSES
            for item in dataclasses.fields(cls)
        }
    )
    settings = [_with_old_names(run.get("settings", {})) for run in (found, asked)]
    pairs = {
        name: tuple(each.get(name, _plain(defaults.get(name))) for each in settings)
        for name in sorted(set().union(*settings))
    }
    for name in ("world_size", *DIVISION, "label_names"):
        pairs[name] = found.get(name), asked[name]
    for group in ("data", "model"):
        pairs |= {f"{group} {name}": (found.get(group, {}).get(name), value) for name, value in asked[group].items()}
    return [_describe(name, *pair) for name, pair in pairs.items() if str(pair[0]) != str(pair[1])]


def _with_old_names(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings by the names that every version of transformers had; where both are there, the old one's."""
    renamed = {old: settings[new] for new, old in OLD_NAMES.items() if new in settings}
    return renamed | {name: value for name, value in settings.items() if name not in OLD_NAMES}


def _count_rows(run: dict[str, Any]) -> int:
    """Of an optimizer step in one process."""
    return math.prod(run.get(name, 0) for name in DIVISION)


def _sample_weights(network: nn.Module, new: Collection[str]) -> str:
    """16 hexadecimal digits of some values of each tensor that was loaded: a whole network may have many gigabytes."""
    digest = xxhash.xxh3_64()
    for name, tensor in network.state_dict().items():
        if name not in new and torch.is_tensor(tensor) and not tensor.is_meta:
            values = tensor.detach().reshape(-1)
            some = values[:: max(1, len(values) // NUM_SAMPLES)].cpu().contiguous().view(torch.uint8)
            digest.update(name.encode() + some.numpy().tobytes())
    return digest.hexdigest()


def _compare_runs(args: Arguments, adapter: Adapter | None, checkpoint: Path) -> None:
    """What the configuration of the checkpoint's run says about the network, where there is one."""
    file = checkpoint.parent / "config.yaml"
    if not file.is_file():
        return
    config, model = read_yaml(file), args.model
    names = ["mode", "freeze_layers", "config_overrides"]
    names += ["adapter"] if adapter is not None and config.get("mode") == model.mode else []
    names += ["target_modules"] if not _is_saved_alone(adapter) else []
    for name in names:
        found, asked = config.get(name, getattr(type(model), name)), getattr(model, name)
        if str(found) != str(asked):  # a value in YAML is a text
            raise UserError(f"{checkpoint} is of a run with --{name} {found}, but this one has {asked}. {ADVICE}")


def _compare_files(args: Arguments, adapter: Adapter | None, checkpoint: Path) -> None:
    """Is it an adapter or a network? FSDP's sharded checkpoints do not show it."""
    holds_adapter = (checkpoint / "adapter_config.json").is_file()
    holds_network = not holds_adapter and any(checkpoint.glob("model*.safetensors"))
    if _is_saved_alone(adapter) and holds_network:
        raise UserError(f"{checkpoint} holds a whole network, but this run trains {adapter.title} alone. {ADVICE}")
    if not _is_saved_alone(adapter) and holds_adapter:
        name = "BitFit, which is saved as" if adapter is not None else f"mode {args.model.mode},"
        raise UserError(f"{checkpoint} holds an adapter, but this run is {name} a whole network. {ADVICE}")


def _is_saved_alone(adapter: Adapter | None) -> bool:
    """Whether a run leaves an adapter, and not a whole network."""
    return adapter is not None and adapter.build is not None


def _plain(value: Any) -> Any:
    """As JSON would give it back, with names in order."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (set, list, tuple)):
        items = [_plain(item) for item in value]
        return sorted(items) if all(isinstance(item, str) for item in items) else items
    return value.value if isinstance(value, Enum) else value


def _describe(name: str, found: Any, asked: Any) -> str:
    flag = f" ({FLAGS[name]})" if name in FLAGS else ""
    if isinstance(found, list) and isinstance(asked, list) and {*map(str, found)} == {*map(str, asked)}:
        return f"{name}{flag}: in another order"
    if isinstance(found, list) and isinstance(asked, list):
        there, here = ([str(x) for x in a if x not in b] for a, b in ((found, asked), (asked, found)))
        return f"{name}{flag}: only in the checkpoint {_shorten(there)}, only here {_shorten(here)}"
    return f"{name}{flag}: {_shorten([repr(found)])} in the checkpoint, {_shorten([repr(asked)])} here"


def _shorten(items: list[str]) -> str:
    text = ", ".join(items[:3]) or "none"
    rest = f" and {len(items) - 3} more" if len(items) > 3 else ""
    return (text if len(text) <= 200 else f"{text[:200]}...") + rest
