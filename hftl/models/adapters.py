"""Which PEFT methods are there, what can each of them change, and how is a network wrapped in one?

A method is one entry of `ADAPTERS`. Its rate and its limits are measured in docs/adapters.md.
"""

import dataclasses
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

from hftl.errors import UserError, unknown_name
from hftl.models.adalora import AllocateRanks
from hftl.models.embeddings import find_trainable_rows, keep_rows_when_saved
from hftl.models.eva import Batches, initialize_eva
from hftl.models.head import head_modules
from hftl.models.targets import BIAS, CONV1D, CONV2D, LINEAR, NORM, describe_coverage, resolve_targets, shape_of
from hftl.tasks.positions import build_empty

logger = logging.getLogger(__name__)

ALL_LAYERS = frozenset({LINEAR, CONV1D, CONV2D})
# Networks whose code, as of transformers 5.23, peft 0.21 cannot put virtual tokens in front of, or has no place for
# the keys and values of a prefix. Tested network by network in tests/test_adapter_matrix.py.
NO_PROMPT = {
    "distilbert": "peft does not find its width",
    "albert": "its embeddings are narrower than its layers",
    "t5": "its classifier takes no embeddings",
}
NO_PREFIX = NO_PROMPT | dict.fromkeys(
    ("modernbert", "deberta", "deberta-v2", "mpnet"), "its layers take no past keys and values"
)
# peft 0.21 takes four-dimensional inputs of a linear layer for those of a convolution.
NO_OFT = dict.fromkeys(("convnext", "convnextv2"), "its linear layers read images, which peft's OFT does not expect")


@dataclass(frozen=True)
class Request:
    """What a method builds its peft configuration from.

    Attributes:
        args: the `ModelArguments`.
        network: not yet wrapped.
        targets: full names of the modules to adapt; none for prompts.
        heads: modules that are trained whole and saved with the adapter.
        task_type: of peft, or None for images.
    """

    args: Any
    network: nn.Module
    targets: list[str]
    heads: list[str]
    task_type: str | None

    def common(self) -> dict[str, Any]:
        """What every configuration has."""
        placed = {"target_modules": self.targets} if self.targets else {}
        return {**placed, "modules_to_save": list(self.heads), "task_type": self.task_type}


@dataclass(frozen=True)
class Adapter:
    """One PEFT method.

    Attributes:
        title: as in its paper.
        build: `Request` -> peft configuration; None: no peft, the biases of the network itself are trained.
        layers: the kinds of layers that it changes; none: it puts virtual tokens in front of the text.
        source: of the method and its defaults.
        learning_rate: None for the rate of LoRA, which depends on the width of the network.
        head_learning_rate: where the method's own rate would be too high for a head.
        refused: model type -> why this network cannot have it.
        is_mergeable: whether it can be folded into the weights, so that prediction costs nothing more.
        rewrites_base: it starts by taking its part out of the frozen weights; loading does the same again.
        on_quantized: whether it can sit on layers in 8 or 4 bits.
        largest_rank: inputs and outputs of a layer -> the largest `--lora_r` that says something there, such as `min`
            for two factors; None: it does not read that flag.
        is_rank_strict: whether no layer may get a larger one; else it is of no use there, and does no harm.
        is_resumable: whether training can go on from what peft saves of it.
        callback: wrapped network -> what has to happen between the steps of training.
        initialize: set the start of the wrapped network from model inputs of training rows.
    """

    title: str
    build: Callable[[Request], Any] | None
    layers: frozenset[str]
    source: str
    learning_rate: float | None = None
    head_learning_rate: float | None = None
    refused: dict[str, str] = dataclasses.field(default_factory=dict)
    is_mergeable: bool = True
    rewrites_base: bool = False
    on_quantized: bool = False
    largest_rank: Callable[[int, int], int] | None = None
    is_rank_strict: bool = False
    is_resumable: bool = True
    callback: Callable[[nn.Module], TrainerCallback] | None = None
    initialize: Callable[[nn.Module, Batches], None] | None = None

    @property
    def is_prompt(self) -> bool:
        """Whether it changes what the network reads, not its layers."""
        return not self.layers


# --- configurations, one function each; peft is imported when one is called


def _lora(request: Request, **changes: Any) -> Any:
    from peft import LoraConfig

    args = request.args
    settings = {"r": args.lora_r, "lora_alpha": args.lora_alpha, "lora_dropout": args.lora_dropout}
    return LoraConfig(**settings, **changes, **request.common())


def _lora_variant(**changes: Any) -> Callable[[Request], Any]:
    return lambda request: _lora(request, **changes)


def _eva(request: Request) -> Any:
    from peft.tuners.lora import EvaConfig

    return _lora(request, init_lora_weights="eva", eva_config=EvaConfig())


def _adalora(request: Request) -> Any:
    from peft import AdaLoraConfig

    rank = request.args.lora_r
    # Starts with half as many ranks again as it keeps (Zhang et al. 2023, section 3.3). The callback knows the steps.
    ranks = {"target_r": rank, "init_r": rank + rank // 2, "lora_alpha": request.args.lora_alpha, "total_step": 1}
    return AdaLoraConfig(**ranks, lora_dropout=request.args.lora_dropout, **request.common())


def _ia3(request: Request) -> Any:
    from peft import IA3Config
    from peft.utils.constants import (
        TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING as FEEDFORWARD,
    )

    # The input of the last feed-forward layer is scaled, the outputs of the others.
    names = FEEDFORWARD.get(request.network.config.model_type, [])
    inner = [target for target in request.targets if any(target.endswith(f".{name}") for name in names)]
    return IA3Config(feedforward_modules=inner, **request.common())


def _vera(request: Request) -> Any:
    from peft import VeraConfig

    return VeraConfig(r=256, **request.common())


def _loha(request: Request) -> Any:
    from peft import LoHaConfig

    return LoHaConfig(r=request.args.lora_r, alpha=request.args.lora_alpha, **request.common())


def _lokr(request: Request) -> Any:
    from peft import LoKrConfig

    return LoKrConfig(r=request.args.lora_r, alpha=request.args.lora_alpha, **request.common())


def _oft(request: Request) -> Any:
    from peft import OFTConfig

    # Exact Cayley transform: the Neumann series, peft's default, is an approximation for speed on large layers.
    block = _common_divisor(request, largest=32)
    return OFTConfig(r=0, oft_block_size=block, use_cayley_neumann=False, **request.common())


def _boft(request: Request) -> Any:
    from peft import BOFTConfig

    block = _common_divisor(request, largest=8)
    return BOFTConfig(boft_block_size=block, boft_n_butterfly_factor=1, **request.common())


def _fourierft(request: Request) -> Any:
    from peft import FourierFTConfig

    layers = [request.network.get_submodule(name).weight for name in request.targets]
    # 150 at a width of 768 (Gao et al. 2024, table 9); the inverse transform divides by the number of entries.
    scaling = 150.0 * min(weight.numel() for weight in layers) / 768**2
    frequencies = min(1000, min(weight.numel() for weight in layers))
    # From zeros: peft's default starts as a random change of the network.
    return FourierFTConfig(n_frequency=frequencies, scaling=scaling, init_weights=True, **request.common())


def _hra(request: Request) -> Any:
    from peft import HRAConfig

    return HRAConfig(r=8, **request.common())  # Yuan et al. 2024: 8 reflections; must be even


def _hira(request: Request) -> Any:
    from peft import HiraConfig

    return HiraConfig(r=request.args.lora_r, **request.common())


def _miss(request: Request) -> Any:
    from peft import MissConfig

    return MissConfig(r=request.args.lora_r, **request.common())


def _shira(request: Request) -> Any:
    from peft import ShiraConfig

    return ShiraConfig(r=request.args.lora_r, random_seed=0, **request.common())


def _ln_tuning(request: Request) -> Any:
    from peft import LNTuningConfig

    return LNTuningConfig(**request.common())


def _prefix(request: Request) -> Any:
    from peft import PrefixTuningConfig

    # From zeros: the default, N(0, 1), drowns the text in noise before the first step.
    virtual = request.args.num_virtual_tokens
    return PrefixTuningConfig(num_virtual_tokens=virtual, init_weights="zero", **request.common())


def _prompt(request: Request) -> Any:
    from peft import PromptTuningConfig

    # From the vocabulary (Lester et al. 2021, section 3.2): random vectors are of another size than words.
    virtual = request.args.num_virtual_tokens
    return PromptTuningConfig(num_virtual_tokens=virtual, prompt_tuning_init="SAMPLE_VOCAB", **request.common())


def _p_tuning(request: Request) -> Any:
    from peft import PromptEncoderConfig

    width = request.network.config.hidden_size
    virtual = request.args.num_virtual_tokens
    return PromptEncoderConfig(num_virtual_tokens=virtual, encoder_hidden_size=width, **request.common())


def _common_divisor(request: Request, largest: int) -> int:
    """The largest block, a power of two, into which the inputs of every layer divide."""
    block = largest
    for name in request.targets:
        weight = request.network.get_submodule(name).weight
        inputs = weight[0].numel()
        while inputs % block:
            block //= 2
    if block < 2:
        raise UserError(f"--adapter {request.args.adapter} rotates blocks of inputs; layers here have an odd number.")
    return block


# --- the methods

ADAPTERS: dict[str, Adapter] = {
    "lora": Adapter(
        "LoRA", _lora, ALL_LAYERS, "Hu et al. 2022; all layers: Schulman 2025", on_quantized=True, largest_rank=min
    ),
    "rslora": Adapter(
        "rsLoRA", _lora_variant(use_rslora=True), ALL_LAYERS, "Kalajdzievski 2023", on_quantized=True, largest_rank=min
    ),
    "dora": Adapter(
        "DoRA", _lora_variant(use_dora=True), ALL_LAYERS, "Liu et al. 2024", on_quantized=True, largest_rank=min
    ),
    "pissa": Adapter(
        "PiSSA",
        _lora_variant(init_lora_weights="pissa"),
        frozenset({LINEAR, CONV1D}),
        "Meng et al. 2024",
        rewrites_base=True,
        largest_rank=min,
    ),
    "olora": Adapter(
        "OLoRA",
        _lora_variant(init_lora_weights="olora"),
        frozenset({LINEAR}),
        "Buyukakyuz 2024",
        rewrites_base=True,
        largest_rank=min,
    ),
    "eva": Adapter(
        "EVA",
        _eva,
        frozenset({LINEAR, CONV1D}),
        "Paischer et al. 2024",
        on_quantized=True,
        initialize=initialize_eva,
        largest_rank=min,
    ),
    "adalora": Adapter(
        "AdaLoRA",
        _adalora,
        frozenset({LINEAR, CONV1D}),
        "Zhang et al. 2023",
        # peft 0.21 saves the factors without the ranks taken away, and cannot load them into a network in training.
        is_resumable=False,
        callback=AllocateRanks,
        on_quantized=True,
        largest_rank=lambda inputs, outputs: (2 * min(inputs, outputs) + 1) // 3,  # starts with `r + r // 2`
    ),
    "ia3": Adapter("(IA)3", _ia3, ALL_LAYERS, "Liu et al. 2022, 3e-3", learning_rate=3e-3, on_quantized=True),
    "vera": Adapter(
        "VeRA", _vera, frozenset({LINEAR, CONV1D}), "Kopiczko et al. 2024, 4e-3 to 1e-2", learning_rate=4e-3
    ),
    "loha": Adapter(
        "LoHa", _loha, frozenset({LINEAR, CONV2D}), "Hyeon-Woo et al. 2022; Yeh et al. 2024", largest_rank=min
    ),
    "lokr": Adapter(
        "LoKr", _lokr, frozenset({LINEAR, CONV2D}), "Edalati et al. 2022; Yeh et al. 2024", largest_rank=min
    ),
    "oft": Adapter("OFT", _oft, frozenset({LINEAR}), "Qiu et al. 2023", refused=NO_OFT),
    "boft": Adapter("BOFT", _boft, frozenset({LINEAR}), "Liu et al. 2024"),
    "fourierft": Adapter(
        "FourierFT",
        _fourierft,
        frozenset({LINEAR, CONV1D}),
        "Gao et al. 2024, 3e-2 to 2e-1",
        learning_rate=5e-2,
        head_learning_rate=2e-3,
    ),
    "hra": Adapter("HRA", _hra, frozenset({LINEAR}), "Yuan et al. 2024"),
    "hira": Adapter("HiRA", _hira, ALL_LAYERS, "Huang et al. 2025", on_quantized=True, largest_rank=min),
    "miss": Adapter("MiSS", _miss, frozenset({LINEAR}), "Kang and Yin 2025", largest_rank=min, is_rank_strict=True),
    "shira": Adapter(
        "SHiRA",
        _shira,
        frozenset({LINEAR}),
        "Bhardwaj et al. 2024",
        largest_rank=lambda inputs, outputs: inputs * outputs // (inputs + outputs),  # `r * (in + out)` change
        is_rank_strict=True,
    ),
    "ln-tuning": Adapter("LN tuning", _ln_tuning, frozenset({NORM}), "Zhao et al. 2024", on_quantized=True),
    "bitfit": Adapter(
        "BitFit",
        None,
        frozenset({BIAS}),
        "Ben Zaken et al. 2022, 1e-4 to 1e-3",
        learning_rate=1e-3,
        is_mergeable=False,
    ),
    "prefix": Adapter(
        "Prefix Tuning",
        _prefix,
        frozenset(),
        "Li and Liang 2021; Liu et al. 2022, 5e-3 to 1e-2",
        learning_rate=1e-2,
        head_learning_rate=2e-3,
        refused=NO_PREFIX,
        is_mergeable=False,
        on_quantized=True,
    ),
    "prompt": Adapter(
        "Prompt Tuning",
        _prompt,
        frozenset(),
        "Lester et al. 2021",
        learning_rate=3e-2,
        head_learning_rate=2e-3,
        refused=NO_PROMPT,
        is_mergeable=False,
        on_quantized=True,
    ),
    "p-tuning": Adapter(
        "P-tuning",
        _p_tuning,
        frozenset(),
        "Liu et al. 2021",
        learning_rate=1e-3,
        refused=NO_PROMPT,
        is_mergeable=False,
        on_quantized=True,
    ),
}


def find_adapter(name: str) -> Adapter:
    """The method of that name."""
    if name not in ADAPTERS:
        raise unknown_name("adapter", name, ADAPTERS)
    return ADAPTERS[name]


def adapter_of(args: Any) -> Adapter | None:
    """The method that a run with these `ModelArguments` trains; None in the other modes."""
    return find_adapter(args.adapter) if args.mode == "peft" else None


def check_adapter(args: Any, config: Any, task: Any) -> None:
    """Refuse a method that this network or task cannot have, before any weights are loaded.

    Args:
        args: the `ModelArguments`.
        config: of the checkpoint.
        task: a `Task`.
    """
    adapter = find_adapter(args.adapter)
    if args.quantization != "none" and not adapter.on_quantized:
        fitting = [name for name, other in ADAPTERS.items() if other.on_quantized]
        raise UserError(
            f"--adapter {args.adapter} cannot sit on weights in {args.quantization}. What can: {', '.join(fitting)}."
        )
    if adapter.is_prompt and args.target_modules:
        raise UserError(f"--adapter {args.adapter} adapts no modules: leave --target_modules out.")
    if reason := _refuse(args.adapter, config.model_type, task):
        fitting = [name for name in ADAPTERS if not _refuse(name, config.model_type, task)]
        raise UserError(
            f"--adapter {args.adapter} does not work with {config.model_type}: {reason}. "
            f"What does: {', '.join(fitting)}."
        )
    if adapter.largest_rank is None and args.lora_r != type(args).lora_r:
        logger.warning("--lora_r %d has no effect: --adapter %s does not read it.", args.lora_r, args.adapter)
    network = build_empty(task.auto_model, config)
    targets = find_targets(network, args, head_modules(network, [], has_new_head=task.has_new_head))
    if adapter.largest_rank is not None:
        _check_rank(adapter, args, {name: shape_of(network.get_submodule(name)) for name in targets})


def _check_rank(adapter: Adapter, args: Any, shapes: dict[str, tuple[int, int]]) -> None:
    """Refuse a rank that is of no use: peft would make larger matrices that say no more, or cut them silently."""
    rank = (args.adapter_config or {}).get("r", args.lora_r)
    limits = {name: adapter.largest_rank(*shape) for name, shape in shapes.items()}
    name = (min if adapter.is_rank_strict else max)(limits, key=limits.get)
    if isinstance(rank, int) and rank > limits[name]:
        inputs, outputs = shapes[name]
        raise UserError(
            f"The rank is {rank} (--lora_r), but {'' if adapter.is_rank_strict else 'even '}{name} has {inputs} "
            f"inputs and {outputs} outputs, and with --adapter {args.adapter} a rank above {limits[name]} says "
            f"nothing more there. Give --lora_r {limits[name]} or less."
        )


def _refuse(name: str, model_type: str, task: Any) -> str | None:
    adapter = ADAPTERS[name]
    if adapter.is_prompt and task.modality == "image":
        return "it puts virtual tokens in front of a text, and there is none"
    return task.refused_adapters.get(name) or adapter.refused.get(model_type)


def cover_adapter(
    network: nn.Module, args: Any, heads: list[str], batch: Mapping[str, torch.Tensor]
) -> dict[str, Any]:
    """How much of a network, not yet wrapped, `args.adapter` reaches."""
    return describe_coverage(network, find_targets(network, args, heads), batch)


def build_adapter(
    network: nn.Module, args: Any, heads: list[str], task_type: str | None, new_tokens: Sequence[int] = ()
) -> Any:
    """Wrap a network in the adapter that `args.adapter` names; its head stays trainable and is saved with it.

    So are rows that the embedding has for `new_tokens`, where the method can; else they are saved as they are.

    Raises:
        UserError: an unknown adapter or setting, or `target_modules` that match nothing.
    """
    from peft import get_peft_model

    adapter = find_adapter(args.adapter)
    targets = find_targets(network, args, heads)
    if adapter.build is None:
        train_biases(network, targets, heads)
        return network
    config = _with_changes(adapter.build(Request(args, network, targets, heads, task_type)), args)
    new_rows = find_trainable_rows(network, new_tokens)
    if new_rows and hasattr(config, "trainable_token_indices"):  # LoRA and what derives from it
        config.trainable_token_indices = new_rows
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="lora with eva initialization")  # a hint for peft's own start
        adapted = get_peft_model(network, config)
    if new_tokens:
        keep_rows_when_saved(adapted)
    _train_in_float32(adapted)
    return adapted


def train_biases(network: nn.Module, targets: list[str], heads: list[str]) -> None:
    """Leave only the heads and the biases of the modules trainable; such a network is saved whole."""
    for name, parameter in network.named_parameters():
        module, _, leaf = name.rpartition(".")
        in_head = any(name.startswith(f"{head}.") for head in heads)
        parameter.requires_grad = in_head or (leaf == "bias" and module in targets)


def find_targets(network: nn.Module, args: Any, heads: list[str]) -> list[str]:
    """Full names of the modules that `args.adapter` adapts; none for prompts."""
    adapter = find_adapter(args.adapter)
    if adapter.is_prompt:
        return []
    wanted = args.target_modules or (_ia3_targets(network) if args.adapter == "ia3" else None)
    return resolve_targets(network, heads, wanted, adapter.layers)


def _ia3_targets(network: nn.Module) -> list[str] | None:
    """Keys, values and the last feed-forward layer (Liu et al. 2022), by the names that peft knows."""
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING as TARGETS

    return TARGETS.get(network.config.model_type)


def _with_changes(config: Any, args: Any) -> Any:
    """The configuration with what `--adapter_config` says; the rest of its checks is peft's own."""
    changes = args.adapter_config or {}
    valid = {field.name for field in dataclasses.fields(config)}
    for name in changes:
        if name not in valid:
            raise unknown_name(f"setting of {type(config).__name__}", name, valid)
    try:
        return dataclasses.replace(config, **changes) if changes else config
    except (TypeError, ValueError) as error:
        raise UserError(f"--adapter_config: {error}") from error


def _train_in_float32(adapted: nn.Module) -> None:
    """Over a bfloat16 body too: peft keeps its new matrices in float32, but not the copied head."""
    from peft.utils import ModulesToSaveWrapper

    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    for module in adapted.modules():
        if isinstance(module, ModulesToSaveWrapper):
            for head in module.modules_to_save.values():
                head.register_forward_pre_hook(_cast_inputs)


def _cast_inputs(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """What the body gives to the head, in the head's own type."""
    is_floating = [isinstance(value, torch.Tensor) and value.is_floating_point() for value in inputs]
    return tuple(value.float() if cast else value for value, cast in zip(inputs, is_floating, strict=True))


def describe_adapters() -> list[tuple[str, ...]]:
    """The table of `hftl adapters`, its head first."""
    rows = [("--adapter", "method", "changes", "--lora_r", "learning rate", "merges", "source")]
    for name, adapter in ADAPTERS.items():
        layers = ", ".join(sorted(adapter.layers)) or "the text: virtual tokens"
        rate = f"{adapter.learning_rate:g}" if adapter.learning_rate else "LoRA's"
        has_rank = "yes" if adapter.largest_rank is not None else "no"
        merges = "yes" if adapter.is_mergeable else "no"
        rows.append((name, adapter.title, layers, has_rank, rate, merges, adapter.source))
    return rows
