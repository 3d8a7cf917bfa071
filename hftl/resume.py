"""May this run go on from that checkpoint? Refuses one of another mode or adapter, before anything is trained.

Trainer 5.23 compares nothing: with another scale, dropout or start of LoRA it goes on with another network, with other
shapes it stops with an error of torch.
"""

import json
from enum import Enum
from pathlib import Path
from typing import Any

from torch import nn

from hftl.config import Arguments
from hftl.errors import UserError
from hftl.models.adapters import Adapter, adapter_of
from hftl.models.modes import find_mode
from hftl.run_folder import find_checkpoint
from hftl.yaml_file import read_yaml

# Of an adapter_config.json: who wrote it, and what it is opened for.
NOT_COMPARED = {"peft_version", "auto_mapping", "inference_mode", "revision"}
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
    _compare_runs(args, adapter, Path(checkpoint))
    _compare_files(args, adapter, Path(checkpoint))


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
    if isinstance(found, list) and isinstance(asked, list):
        there, here = ([str(x) for x in a if x not in b] for a, b in ((found, asked), (asked, found)))
        return f"{name}{flag}: only in the checkpoint {_shorten(there)}, only here {_shorten(here)}"
    return f"{name}{flag}: {_shorten([repr(found)])} in the checkpoint, {_shorten([repr(asked)])} here"


def _shorten(items: list[str]) -> str:
    text = ", ".join(items[:3]) or "none"
    rest = f" and {len(items) - 3} more" if len(items) > 3 else ""
    return (text if len(text) <= 200 else f"{text[:200]}...") + rest
