"""How a network comes into memory: from a checkpoint, or at random from its configuration.

Weights are safetensors only, and no code from a repository is ever run.
"""

import copy
import dataclasses
import inspect
import json
import logging
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import AutoConfig, PreTrainedModel
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import cached_file
from transformers.utils.peft_utils import find_adapter_config_file

from hftl.assets import is_bundled, resolve_model
from hftl.errors import UserError
from hftl.models.embeddings import add_rows, count_rows
from hftl.models.quantization import build_quantization, keep_layout
from hftl.tasks.positions import build_empty
from hftl.tasks.processors import explained_loading

logger = logging.getLogger(__name__)

SAFE_WEIGHTS = "adapter_model.safetensors"
MOMENTUM = 0.1  # of BatchNorm in torch: the share of a batch in the running statistics
LARGEST_MOMENTUM = 0.5  # above it the share is meant the other way round


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A network and what of it did not come from the checkpoint.

    Attributes:
        new_parameters: names.
        new_tokens: rows of the embedding.
    """

    network: PreTrainedModel
    new_parameters: frozenset[str]
    new_tokens: range = range(0)


def read_config(args: Any, task: Any) -> Any:
    """The checkpoint's own configuration: a quick look at whether it is there and has a head for this task.

    Raises:
        UserError: it has none, or it cannot be loaded.
    """
    with explained_loading(args.model_name_or_path):
        source = resolve_model(args.model_name_or_path)
        _refuse_an_adapter(args, source)
        config = AutoConfig.from_pretrained(source, revision=args.model_revision, trust_remote_code=False)
    known = getattr(transformers, task.auto_model)._model_mapping
    if type(config) not in known:
        raise UserError(
            f"{args.model_name_or_path} is a {config.model_type} network, which has no head for {task.name}. "
            f"Name a checkpoint that {task.auto_model} knows."
        )
    _refuse_other_inputs(args, task, known[type(config)])
    return config


def _refuse_other_inputs(args: Any, task: Any, found: Any) -> None:
    """Some networks that transformers lists for a task read something else: Perceiver, ImageGPT, ShieldGemma."""
    needed = "pixel_values" if task.modality == "image" else "input_ids"
    classes = found if isinstance(found, (list, tuple)) else [found]
    if not any(needed in inspect.signature(network.forward).parameters for network in classes):
        takes = ", ".join(list(inspect.signature(classes[0].forward).parameters)[1:4])
        raise UserError(
            f"{args.model_name_or_path} is a {classes[0].__name__}, which does not read {needed} as the networks of "
            f"{task.name} do (it takes {takes}, ...). Name another --model_name_or_path."
        )


def _refuse_an_adapter(args: Any, source: str) -> None:
    """An adapter's folder or repository is no network; transformers would load its base, and put the adapter on it."""
    file = find_adapter_config_file(source, revision=args.model_revision)
    if file is None:
        return
    adapter = json.loads(Path(file).read_text(encoding="utf-8"))
    name, base = args.model_name_or_path, adapter.get("base_model_name_or_path")
    is_run = Path(name, "run.json").is_file()
    merge = f"`hftl merge {name} OUT`" if is_run else "`merge_and_unload` of peft"
    advice = [f"To train all of it further, merge it with {merge} and name the result."]
    if base:
        advice.append(f"To start again from what it was trained on, name {base}.")
    if Path(name, "trainer_state.json").is_file():
        advice.append(f"To go on with its own run, give --resume_from_checkpoint {name}.")
    elif Path(name).is_dir() and get_last_checkpoint(name):
        advice.append(f"To go on with its own run, give --output_dir {name} --resume_from_checkpoint true.")
    over = f" over {base}" if base else ""
    raise UserError(f"{name} is an adapter ({adapter.get('peft_type')}){over}, not a network. {' '.join(advice)}")


def check_adapter_weights(path: str, revision: str = "main") -> None:
    """Look that an adapter's weights are safetensors; peft would load a pickle, `adapter_model.bin`, in their place.

    Args:
        path: folder or Hub id of an adapter.
        revision: of a Hub id.

    Raises:
        UserError: they are not.
    """
    with explained_loading(path):
        found = cached_file(path, SAFE_WEIGHTS, revision=revision, _raise_exceptions_for_missing_entries=False)
    if found is None:
        raise UserError(
            f"The adapter {path} has no {SAFE_WEIGHTS}. Weights in pickle files (adapter_model.bin) can run code when "
            "they are loaded, so hftl does not: convert them once, with `save_pretrained` of the loaded adapter."
        )


def name_base(args: Any, base: str | None, commit: str | None = None) -> Any:
    """The `ModelArguments` of a run, naming the network that its adapter sits on.

    That is another one than `model_name_or_path` where the run pretrained that first (`pretrain_file`).

    Args:
        args: of the run, as its `config.yaml` says.
        base: `base_model_name_or_path` of the adapter.
        commit: of the Hub that the run has read; a branch may have moved on since.

    Raises:
        UserError: the pretrained network was kept in the cache and is gone.
    """
    if args.pretrain_file is None:
        return dataclasses.replace(args, model_revision=commit or args.model_revision)
    if not base or not Path(base).is_dir():
        raise UserError(
            f"The adapter sits on {args.model_name_or_path} after pretraining on {args.pretrain_file}, which was kept "
            f"in {base} and is gone. Run its config.yaml again; `hftl merge RUN OUT` then makes one without a base."
        )
    return dataclasses.replace(args, model_name_or_path=base, model_revision="main", pretrain_file=None)


def find_commit(args: Any) -> str | None:
    """The commit of the Hub that a checkpoint was loaded from, as its place in the cache says; None for local ones.

    transformers 5 leaves no `_commit_hash` in a configuration.
    """
    name = args.model_name_or_path
    if is_bundled(name) or Path(name).exists():
        return None
    file = try_to_load_from_cache(name, "config.json", revision=args.model_revision)
    return Path(file).parent.name if isinstance(file, str) else None


def load_config(args: Any, task: Any, processor: Any, info: Any) -> Any:
    """The checkpoint's configuration with this task's labels.

    Args:
        args: the `ModelArguments`.
        task: a `Task`.
        processor: tokenizer or image processor.
        info: the `LabelInfo`.
    """
    config = read_config(args, task)
    task.adjust_config(config, processor, info)
    return config


def load_pretrained(args: Any, task: Any, config: Any) -> LoadedModel:
    """The checkpoint's weights under a head for this task; a head of another size is replaced.

    Where the configuration asks for more tokens than the checkpoint has, rows are added to the embedding.
    """
    original = read_config(args, task)
    wanted, present = count_rows(config), count_rows(original)
    if wanted != present:
        config = copy.deepcopy(config)
        config.get_text_config().vocab_size = present
    kept = _list_outside(task, config) if args.quantization != "none" else []
    network, new, mismatched = _load(args, task, config, kept)
    _refuse_a_new_body(network, new, mismatched, args.model_name_or_path, original)
    started_at_random = {name.rsplit(".", 1)[0] for name in new}
    if args.quantization != "none" and not started_at_random <= set(kept):  # such as a pooler: it has to be trained
        network, new, _ = _load(args, task, config, sorted({*kept, *started_at_random}))
    return LoadedModel(network, new, range(0) if wanted == present else add_rows(network, wanted))


def _load(args: Any, task: Any, config: Any, kept: list[str]) -> tuple[PreTrainedModel, frozenset[str], set[str]]:
    """The network, and the names of its parameters that are not in the checkpoint, or not in this shape."""
    with explained_loading(args.model_name_or_path):
        network, report = getattr(transformers, task.auto_model).from_pretrained(
            resolve_model(args.model_name_or_path),
            config=config,
            revision=args.model_revision,
            dtype=getattr(torch, args.dtype),  # transformers' own default keeps bf16 checkpoints in bf16 in training
            quantization_config=build_quantization(args.quantization, kept),
            trust_remote_code=False,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    if args.quantization == "nf4":
        keep_layout(network)
    mismatched = {entry[0] if isinstance(entry, (tuple, list)) else entry for entry in report["mismatched_keys"]}
    if args.quantization != "none":
        mismatched |= _replace_reshaped(network, build_empty(task.auto_model, config), kept)
    return network, frozenset(report["missing_keys"]) | mismatched, mismatched


def _replace_reshaped(network: PreTrainedModel, wanted: PreTrainedModel, kept: list[str]) -> set[str]:
    """Start modules outside the body anew that have another shape than the configuration asks for.

    transformers 5.17 loads the checkpoint's head into a quantized network whatever its size, and says nothing; 5.23
    does what it does without quantization.

    Returns:
        The names of their parameters.
    """
    shapes = {name: parameter.shape for name, parameter in wanted.named_parameters()}
    reshaped = {
        name
        for name, parameter in network.named_parameters()
        if name.split(".")[0] in kept and parameter.shape != shapes.get(name)
    }
    for name in sorted({name.rpartition(".")[0] for name in reshaped}):
        old, new = network.get_submodule(name), wanted.get_submodule(name)
        new.to_empty(device=old.weight.device).to(old.weight.dtype)
        new.apply(network._init_weights)
        network.set_submodule(name, new)
    return reshaped


def _list_outside(task: Any, config: Any) -> list[str]:
    """Modules outside the pretrained body of the network that a configuration describes."""
    network = build_empty(task.auto_model, config)
    return [name for name, _ in network.named_children() if f"{name}." != body_prefix(network)]


def build_random(args: Any, task: Any, config: Any) -> LoadedModel:
    """The same network at random: nothing of the checkpoint but its configuration, changed by `config_overrides`.

    With `pretrain_file` the checkpoint is one that was made from that on the user's own texts alone.
    """
    if args.pretrain_file is not None:
        return load_pretrained(args, task, config)
    apply_overrides(config, args.config_overrides)
    network = getattr(transformers, task.auto_model).from_config(config, dtype=torch.float32, trust_remote_code=False)
    reset_random_norms(network)
    return LoadedModel(network, frozenset(dict(network.named_parameters())))


def reset_random_norms(network: nn.Module) -> None:
    """Set normalization layers whose scale was drawn at random to the identity.

    transformers 5.23 draws the BatchNorm scales of EfficientNet from N(0, 0.02): each layer divides its signal by
    about fifty, and after 49 of them nothing of the image is left. Such a network stays at chance.
    """
    for module in network.modules():
        is_norm = isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm))
        if is_norm and module.weight is not None and module.weight.unique().numel() > 1:
            module.reset_parameters()


def correct_momentum(network: nn.Module) -> None:
    """Give BatchNorm layers torch's momentum where a class has copied TensorFlow's, which is the share that is kept.

    transformers 5.23 does so in MobileNetV1 (.9997), MobileNetV2 (.997), EfficientNet and ALIGN (.99), whose running
    statistics then are those of the last batch alone. .1 and not 1 - .9997, which is for millions of steps. The
    configuration stays as it is: only training reads the momentum.
    """
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and (module.momentum or 0) > LARGEST_MOMENTUM:
            module.momentum = MOMENTUM


def apply_overrides(config: Any, overrides: str | None) -> None:
    """Set `name=value,...` on a configuration; the type is that of the present value."""
    changed = set()
    for part in filter(None, (overrides or "").split(",")):
        name, _, text = part.partition("=")
        changed.add(name)
        if name not in config.to_dict():
            raise UserError(f"--config_overrides: a {config.model_type} configuration has no {name!r}.")
        old = getattr(config, name)
        try:
            value = json.loads(text.lower() if isinstance(old, bool) else text) if not isinstance(old, str) else text
        except json.JSONDecodeError as error:
            raise UserError(f"--config_overrides: {name}={text!r} does not look like the present {old!r}.") from error
        if isinstance(old, (int, float)) and not isinstance(value, (int, float)):
            raise UserError(f"--config_overrides: {name}={text!r} does not look like the present {old!r}.")
        setattr(config, name, value)
    if "num_hidden_layers" in changed:
        _renew_kinds_of_layers(config, changed)
    if changed:
        try:
            getattr(config, "validate", lambda: None)()  # as `save_pretrained` would, after training
        except StrictDataclassError as error:
            raise UserError(f"--config_overrides {overrides}: {error}") from error


def _renew_kinds_of_layers(config: Any, chosen: set[str]) -> None:
    """Lists with an entry for each layer, filled when the configuration was read: for the layers that it has now."""
    names = {"layer_types", "mlp_layer_types"} - chosen
    stale = [name for name in names if len(getattr(config, name, None) or ()) not in (0, config.num_hidden_layers)]
    if stale:
        renewed = type(config).from_dict({n: value for n, value in config.to_dict().items() if n not in stale})
        for name in stale:
            setattr(config, name, getattr(renewed, name))


def body_prefix(network: PreTrainedModel) -> str:
    """`bert.`, `vit.`, ...: where the pretrained part of a network with a head lives; of T5 the network itself."""
    prefix = network.base_model_prefix or "backbone"  # UperNet names none
    return f"{prefix}." if hasattr(network, prefix) else ""


def _refuse_a_new_body(
    network: PreTrainedModel, new: frozenset[str], mismatched: set[str], name: str, original: Any
) -> None:
    prefix = body_prefix(network)
    body = [key for key, _ in network.named_parameters() if key.startswith(prefix)]
    reshaped = sorted(key for key in mismatched if key.startswith(prefix) and not _is_of_classes(network, key))
    if reshaped:
        raise UserError(
            f"{name}: the checkpoint's {reshaped[0]} has another shape here, so it would start at random. "
            + _explain_shape(*map(_find_image_size, (original, network.config)))
        )
    missing = [key for key in body if key in new]
    if len(missing) > len(body) // 2:
        raise UserError(
            f"{name}: {len(missing)} of {len(body)} weights are not in the checkpoint. Is it of this kind?"
        )
    if missing:
        logger.warning("%s: not in the checkpoint, so starting at random: %s", name, ", ".join(missing[:6]))


def _find_image_size(config: Any) -> Any:
    return getattr(
        config if hasattr(config, "image_size") else getattr(config, "vision_config", None), "image_size", None
    )


def _explain_shape(original: Any, size: Any) -> str:
    if original == size:
        return "Its config.json belongs to other weights."
    side = max(original) if isinstance(original, (list, tuple)) else original
    return (
        f"It reads images of {side} pixels, and these have {size}. Give --image_size {side}, or a network that "
        "accepts any size."
    )


def _is_of_classes(network: PreTrainedModel, key: str) -> bool:
    """Whether it belongs to a layer with an output for each class: detectors have such heads inside of their body."""
    module = network.get_submodule(key.rpartition(".")[0])
    return isinstance(module, nn.Linear) and module.out_features == network.config.num_labels
