"""The ways to get from a checkpoint to an answer, and the training settings that fit each.

`full` trains every weight, `peft` an adapter and the head, `scratch` everything from random init, `probe` only a
linear head on frozen features, `zero-shot` nothing: a language model answers as it is. Nothing else in the package
branches on the mode: what others want to know of one stands on its entry.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import nn

from hftl.errors import UserError, unknown_name
from hftl.models.adapters import build_adapter, check_adapter, cover_adapter, find_adapter
from hftl.models.load import LoadedModel, body_prefix, build_random, load_pretrained
from hftl.models.quantization import count_elements
from hftl.models.targets import is_convolutional

BATCH_SIZE = 32  # examples an optimizer step, over all processes; what the default rates are for


class Role(str, Enum):
    """The part that an arm plays in a comparison, told by its mode or baseline."""

    CHANCE = "chance"
    """Looks at no input: its score is the level of chance, and it never wins."""
    CHEAP = "cheap"
    """Trains no network: it may win, and is named where no trained arm is shown to beat it."""
    FROZEN = "frozen"
    """As cheap, and reads a pretrained network that it leaves as it is."""
    TUNED = "tuned"
    """Trains weights that start from a checkpoint, or are added to it."""
    SCRATCH = "scratch"
    """Trains weights that start at random."""

    @property
    def is_trained(self) -> bool:
        """Whether there is a training loop."""
        return self in (Role.TUNED, Role.SCRATCH)


@dataclass(frozen=True)
class Mode:
    """How one mode loads, changes and trains a network.

    Attributes:
        title: in reports, where the arm has no other.
        role: in a comparison.
        load: arguments, task, configuration -> network.
        adapt: freeze or wrap the network, given the arguments, its head modules, the peft task type and the tokens
            for which rows were added to its embedding.
        defaults: the training settings of this mode, for a `Schedule`.
        keeps_base: whether the weights of the checkpoint stay as they are, so that they may be quantized.
        head_init: what `--head_init auto` means for text and for images: docs/head-init.md has the measurements.
        augmentation: what `--augmentation auto` means.
        check: refuse what this checkpoint cannot have, before it is loaded, given the arguments, its configuration
            and the task.
        cover: how much of the network is adapted, given it, the arguments, its head modules and a batch; None where
            that is not a question.
    """

    title: str
    role: Role
    load: Callable[[Any, Any, Any], LoadedModel]
    adapt: Callable[..., nn.Module]
    defaults: Callable[["Schedule"], dict[str, Any]]
    head_init: dict[str, str]
    keeps_base: bool = False
    augmentation: str = "light"
    check: Callable[[Any, Any, Any], None] = lambda args, config, task: None
    cover: Callable[[nn.Module, Any, list[str], Any], dict[str, Any] | None] = lambda *_: None

    @property
    def is_trained(self) -> bool:
        """Whether there is a training loop; a probe is fitted in closed form."""
        return self.role.is_trained

    def choose_head_init(self, task: Any, wanted: str) -> str:
        """How the head starts, given the task and `--head_init`; `pretrained` where it came with the checkpoint."""
        if not task.has_new_head:
            if wanted not in ("auto", "random"):
                raise UserError(
                    f"--head_init {wanted} is for heads of labels; {task.name} keeps the checkpoint's head."
                )
            return "pretrained"
        if not task.fits_head:
            if wanted not in ("auto", "random"):
                raise UserError(f"--head_init {wanted} fits one vector a row; {task.name} needs a head at random.")
            return "random"
        return self.head_init[task.modality] if wanted == "auto" else wanted


@dataclass(frozen=True)
class Schedule:
    """What the default settings depend on."""

    modality: str
    num_train_examples: int
    hidden_size: int
    is_convolutional: bool
    batch_size: int = BATCH_SIZE
    adapter: str = "lora"

    def num_steps(self, *, floor: int, epochs: tuple[int, int, int]) -> int:
        """Optimizer steps: the epochs for data up to 10k, up to 50k and beyond, but never fewer than `floor`.

        The floor keeps small sets from being under-trained: few-sample fine-tuning is unstable mostly because it
        stops too early (Mosbach et al. 2021; Zhang et al. 2021).
        """
        n = self.num_train_examples
        passes = epochs[0] if n <= 10_000 else epochs[1] if n <= 50_000 else epochs[2]
        return max(floor, -(-n * passes // self.batch_size))


def _keep(network: nn.Module, args: Any, heads: list[str], *_: Any) -> nn.Module:
    if args.freeze_layers:
        freeze_lower_layers(network, args.freeze_layers, heads)
        keep_batch_statistics(network)
    return network


def _freeze(network: nn.Module, args: Any, heads: list[str], *_: Any) -> nn.Module:
    freeze_body(network, heads)
    return network


def _add_adapter(
    network: nn.Module, args: Any, heads: list[str], task_type: str | None, new_tokens: Sequence[int] = ()
) -> nn.Module:
    adapted = build_adapter(network, args, heads, task_type, new_tokens)
    keep_batch_statistics(adapted)
    return adapted


def freeze_body(network: nn.Module, heads: list[str]) -> None:
    """Leave only the head modules trainable."""
    for name, parameter in network.named_parameters():
        parameter.requires_grad = any(name.startswith(f"{head}.") for head in heads)


def freeze_lower_layers(network: nn.Module, num_layers: int, heads: list[str]) -> None:
    """Freeze what comes before the layers of the body (embeddings, stem) and the lowest of the layers.

    Raises:
        UserError: the network has no list of layers, or not so many that one would be left.
    """
    prefix = body_prefix(network)
    stacks = {n: m for n, m in network.named_modules() if n.startswith(prefix) and isinstance(m, nn.ModuleList)}
    outermost = [n for n in stacks if not any(n.startswith(f"{other}.") for other in stacks if other != n)]
    if not outermost:
        raise UserError(f"--freeze_layers: {type(network).__name__} has no list of layers to freeze the lowest of.")
    name = max(outermost, key=lambda stack: sum(p.numel() for p in stacks[stack].parameters()))
    if num_layers >= len(stacks[name]):
        raise UserError(f"--freeze_layers is {num_layers}, but {name} has {len(stacks[name])} layers; leave one free.")
    kept = tuple(f"{name}.{index}." for index in range(num_layers, len(stacks[name])))
    is_before = True
    for parameter_name, parameter in network.named_parameters():
        is_before = is_before and not parameter_name.startswith(kept)
        if is_before and not any(parameter_name.startswith(f"{head}.") for head in heads):
            parameter.requires_grad = False


def keep_batch_statistics(network: nn.Module) -> None:
    """Keep BatchNorm layers without trainable weights in evaluation mode, whatever `train()` says.

    Their running statistics are not part of an adapter: if training moved them, the saved adapter over the original
    checkpoint would be another network than the one that was evaluated.
    """
    for module in network.modules():
        is_batch_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
        if is_batch_norm and not any(p.requires_grad for p in module.parameters()):
            module.register_forward_pre_hook(_evaluate_only)


def _evaluate_only(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
    module.eval()


def recompute_activations(network: nn.Module, settings: dict[str, Any] | None) -> None:
    """Keep few activations for the backward pass and compute the others again, as Trainer does when it is asked to.

    transformers 5.23 renamed the method, and warns at the old name; 5.17 has no other.
    """
    new = "activation_checkpointing_enable"
    getattr(network, new if hasattr(network, new) else "gradient_checkpointing_enable")(settings)


def _transformer_rate(schedule: Schedule) -> float:
    if (
        schedule.modality == "language"
    ):  # fitted to Llama models (Schulman 2025): 1.3e-4 at a width of 576, 3e-5 at 4096
        return 5e-5 * (2000 / schedule.hidden_size) ** 0.781
    # 5e-5 for the 768-wide encoders (Devlin et al. 2019; Mosbach et al. 2021), higher for narrower ones: measured
    # good on 384-wide MiniLM at 2e-4. Below a width of about 256 the rule has no ground to stand on.
    return min(5e-5 * (768 / schedule.hidden_size) ** 2, 5e-4)


def _full_defaults(schedule: Schedule) -> dict[str, Any]:
    warm_up = {"warmup_steps": 0.1}  # a share of the steps (Mosbach et al. 2021)
    if schedule.modality == "image":
        rate = 1e-3 if schedule.is_convolutional else _transformer_rate(schedule)
        steps = schedule.num_steps(floor=300, epochs=(10, 5, 3))
        return {
            "learning_rate": rate,
            "weight_decay": 0.05,
            "lr_scheduler_type": "cosine",
            "max_steps": steps,
        } | warm_up
    rate, weight_decay = _transformer_rate(schedule), 0.01
    if schedule.modality == "language":  # no new head to bring up, and what is learnt by heart is lost to the rest
        steps = schedule.num_steps(floor=100, epochs=(3, 3, 1))
        return {"learning_rate": rate, "weight_decay": weight_decay, "max_steps": steps, "warmup_steps": 0.03}
    steps = schedule.num_steps(floor=400, epochs=(10, 5, 3))
    return {"learning_rate": rate, "weight_decay": weight_decay, "max_steps": steps} | warm_up


def _peft_defaults(schedule: Schedule) -> dict[str, Any]:
    # About ten times the full rate (Schulman 2025), which gives the 5e-4 of the LoRA paper at a width of 768.
    defaults = _full_defaults(schedule) | {"weight_decay": 0.01}
    if schedule.modality != "language":
        defaults["warmup_steps"] = 0.06
    if rate := find_adapter(schedule.adapter).learning_rate:
        return defaults | {"learning_rate": rate}
    if schedule.is_convolutional:
        return defaults | {"learning_rate": 3e-3}
    return defaults | {"learning_rate": 10 * _transformer_rate(schedule)}


def _scratch_defaults(schedule: Schedule) -> dict[str, Any]:
    # Longer, hotter, more decay: random weights have further to go (He et al. 2019; Brigato et al. 2022). 1e-4 is what
    # BERT-base was pretrained with (Devlin et al. 2019); on 384-wide MiniLM 5e-4 hardly learned, with warm-up too.
    steps = schedule.num_steps(floor=600, epochs=(20, 10, 6))
    rate = 1e-3 if schedule.is_convolutional else min(1e-4 * 768 / schedule.hidden_size, 5e-4)
    settings = {"learning_rate": rate, "weight_decay": 0.1, "lr_scheduler_type": "cosine", "max_steps": steps}
    return settings | {"warmup_steps": 0.1}


def _no_defaults(schedule: Schedule) -> dict[str, Any]:
    return {}


_AT_RANDOM = {"text": "random", "image": "random"}
_FITTED = {"text": "probe", "image": "probe"}

MODES: dict[str, Mode] = {
    "full": Mode("Full fine-tuning", Role.TUNED, load_pretrained, _keep, _full_defaults, _AT_RANDOM),
    "peft": Mode(
        "Adapter",
        Role.TUNED,
        load_pretrained,
        _add_adapter,
        _peft_defaults,
        {"text": "auto-probe", "image": "random"},
        keeps_base=True,
        check=check_adapter,
        cover=cover_adapter,
    ),
    "scratch": Mode(
        "From scratch", Role.SCRATCH, build_random, _keep, _scratch_defaults, _AT_RANDOM, augmentation="strong"
    ),
    "probe": Mode("Probe", Role.FROZEN, load_pretrained, _freeze, _no_defaults, _FITTED, keeps_base=True),
    "zero-shot": Mode("Not tuned", Role.CHEAP, load_pretrained, _freeze, _no_defaults, _AT_RANDOM, keeps_base=True),
}


def find_mode(name: str | None) -> Mode:
    """The mode of that name."""
    if name is None:
        raise UserError(f"Give --mode: {', '.join(MODES)}.")
    if name not in MODES:
        raise unknown_name("mode", name, MODES, "LoRA is an adapter of mode peft.")
    return MODES[name]


def describe_schedule(
    network: nn.Module, modality: str, num_train_examples: int, batch_size: int, *, adapter: str = "lora"
) -> Schedule:
    """What the defaults depend on, read from the network; `batch_size` counts the examples of an optimizer step."""
    config = network.config if modality == "image" else network.config.get_text_config()
    width = getattr(config, "hidden_size", None) or max(getattr(config, "hidden_sizes", None) or [768])
    return Schedule(modality, num_train_examples, width, is_convolutional(network), batch_size, adapter)


def count_parameters(network: nn.Module) -> tuple[int, int]:
    """Parameters in all, and those that are trained."""
    parameters = list(network.parameters())
    return sum(map(count_elements, parameters)), sum(p.numel() for p in parameters if p.requires_grad)
