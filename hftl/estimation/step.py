"""What does one training step of a network hold in memory and compute? Simulated on tensors without content.

The network is built by the mode as a run builds it, and makes a real step (forward, loss, backward) of fake tensors:
what autograd keeps, what recomputation saves, and what is short-lived all follow from its own code.
"""

import contextlib
import inspect
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from hftl.cost.flops import count_flops
from hftl.estimation.live_memory import LiveMemory
from hftl.models.head import head_modules
from hftl.models.load import apply_overrides, read_config
from hftl.models.modes import find_mode, recompute_activations
from hftl.precision import computing_in
from hftl.tasks.base import Task
from hftl.tasks.positions import build_empty

GRADIENT_BYTES = 4  # of a trained weight: they are float32, and so are their gradients
# Bytes of optimizer state for a trained weight. 8 bits: two states of a byte and their scales, one for 256 weights
# (bitsandbytes); Adafactor keeps a row and a column of each matrix.
OPTIMIZER_BYTES = {"adamw_8bit": 2 + 8 / 256, "adam_8bit": 2 + 8 / 256, "sgd": 0, "adafactor": 0, "lion": 4}
ADAM_BYTES = 8
# A weight in nf4 is half a byte; a scale for 64 of them in a byte, and one of four bytes for 256 scales.
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)


@dataclass(frozen=True)
class Shape:
    """Rows of a step, and how large each is: tokens of a text, pixels of the side of an image."""

    rows: int
    length: int


@dataclass(frozen=True)
class Step:
    """Bytes by term, and operations.

    Attributes:
        weights: of the network, and of nf4 weights with their scales.
        gradients: of what is trained.
        optimizer: its states.
        activations: what the forward pass keeps for the backward one, logits and loss included.
        logits: of these the output alone; the loss takes two to three times as much again.
        passes: the most that forward and backward pass hold beside the weights: activations are freed while gradients
            are made, so that it is less than their sum.
        evaluation: what an evaluation pass of as many rows holds at most beside the weights.
        flops: floating-point operations of a step.
        num_parameters: in all, and `num_trained` of them are trained.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    passes: int
    evaluation: int
    flops: int
    num_parameters: int
    num_trained: int

    @property
    def peak(self) -> int:
        """The most that a step or an evaluation holds, in bytes."""
        return self.weights + self.optimizer + max(self.passes, self.gradients, self.evaluation)


@dataclass(frozen=True)
class Plan:
    """How a step is made.

    Attributes:
        autocast: what products are computed in.
        optim: name of the optimizer, as Trainer takes it.
        is_trained: whether there is a backward pass; a probe has none.
        is_checkpointed: whether layers are computed again in the backward pass.
        is_quantized: whether the frozen linear layers are in nf4.
        is_on_gpu: where depthwise convolutions gain by fewer bits as others do.
    """

    autocast: torch.dtype | None = None
    optim: str = "adamw_torch_fused"
    is_trained: bool = True
    is_checkpointed: bool = False
    is_quantized: bool = False
    is_on_gpu: bool = False


def build_network(model: Any, task: Task) -> nn.Module:
    """The network as the mode of `model` trains it, without memory for its weights.

    Args:
        model: the `ModelArguments`.
        task: that of the run.
    """
    config = read_config(model, task)
    mode = find_mode(model.mode)
    if model.mode == "scratch":
        apply_overrides(config, model.config_overrides)
    config.get_text_config().use_cache = False  # as Trainer sets it
    network = build_empty(task.auto_model, config)
    heads = head_modules(network, [], has_new_head=task.has_new_head)
    with torch.device("meta"), _quiet():
        network = mode.adapt(network, model, heads, task.peft_task_type, range(0))
    if model.dtype != "float32":
        for parameter in network.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(getattr(torch, model.dtype))
    return network


class _Fake(FakeTensorMode):
    """Answers yes where a network asks about values that are not there, such as whether all are finite."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].dtype == torch.bool:
            return True
        return super().__torch_dispatch__(func, types, args, kwargs)


class Simulator:
    """Makes steps of one network, which is left without content."""

    def __init__(self, network: nn.Module, task: Task, plan: Plan) -> None:
        self.network, self.task, self.plan = network, task, plan
        if plan.is_checkpointed:
            settings = {"use_reentrant": False, "preserve_rng_state": False}
            with _quiet():
                recompute_activations(network, settings)
        if plan.is_quantized and plan.autocast is not None:  # unpacked for each product, not kept as casts are
            for module in _quantized_linear(network):
                module.weight.data = module.weight.data.to(plan.autocast)
        _forget(network)
        self._fake = _Fake(allow_non_fake_inputs=True)
        with self._fake:
            network.to_empty(device="cpu")
            getattr(network, "get_base_model", lambda: network)().tie_weights()  # which `to_empty` has parted

    def find_peak(self, shape: Shape) -> int:
        """`Step.peak` of rows of this shape, without counting operations."""
        with self._fake, _quiet():
            return _simulate(self.network, self.task, shape, self.plan, is_counted=False).peak

    def make(self, shape: Shape) -> Step:
        """One step with rows of this shape."""
        with self._fake, _quiet():
            return _simulate(self.network, self.task, shape, self.plan)


def _forget(network: nn.Module) -> None:
    """Call what transformers remembers for the whole process as if it did not: it would remember empty tensors."""
    for module in network.modules():
        for name in dir(type(module)):
            if not name.startswith("_cached_"):
                continue
            method = inspect.getattr_static(type(module), name)
            is_static = isinstance(method, staticmethod)
            function = method.__func__ if is_static else method
            original = getattr(function, "__wrapped__", function)
            setattr(module, name, original if is_static else original.__get__(module))


def _simulate(network: nn.Module, task: Task, shape: Shape, plan: Plan, *, is_counted: bool = True) -> Step:
    trained = [p for p in network.parameters() if p.requires_grad] if plan.is_trained else []
    memory, activations, logits = _measure_step(network, task, shape, plan)
    # By itself: counting keeps tensors alive.
    flops = count_flops(lambda: _make_step(network, task, shape, plan)) if is_counted else 0
    evaluation = _measure_evaluation(network, task, shape, plan)
    weights = LiveMemory(_tensors(network)).now
    packed = _quantized_linear(network) if plan.is_quantized else []
    saved = sum(round(m.weight.numel() * (m.weight.element_size() - NF4_BYTES)) for m in packed)
    unpacked = max((m.weight.numel() * m.weight.element_size() for m in packed), default=0)
    num_trained = sum(p.numel() for p in trained)
    return Step(
        weights=weights - saved,
        gradients=GRADIENT_BYTES * num_trained,
        optimizer=round(_optimizer_bytes(plan.optim) * num_trained),
        activations=activations,
        logits=logits,
        passes=memory.peak - weights + unpacked,
        evaluation=evaluation + unpacked,
        flops=flops,
        num_parameters=sum(p.numel() for p in network.parameters()),
        num_trained=num_trained,
    )


def _measure_step(network: nn.Module, task: Task, shape: Shape, plan: Plan) -> tuple[LiveMemory, int, int]:
    """The memory of a step, and of it the bytes that the forward pass keeps, and those of the output."""
    memory = LiveMemory(_tensors(network))
    weights = memory.now
    if not plan.is_trained:
        return memory, 0, 0
    network.train()
    with memory:
        outputs = _forward(network, task, shape, plan)
        loss = _compute_loss(outputs, task, shape)
        logits = sum(value.untyped_storage().nbytes() for value in outputs)
        del outputs  # as Trainer does before the backward pass
        activations = memory.now - weights
        loss.backward()
    network.zero_grad(set_to_none=True)
    return memory, activations, logits


def _make_step(network: nn.Module, task: Task, shape: Shape, plan: Plan) -> None:
    if plan.is_trained:
        network.train()
        _compute_loss(_forward(network, task, shape, plan), task, shape).backward()
        network.zero_grad(set_to_none=True)
        return
    network.eval()
    with torch.no_grad():
        _forward(network, task, shape, plan)


def _optimizer_bytes(name: str) -> float:
    plain = name.removeprefix("paged_").replace("_bnb", "")
    found = [value for key, value in OPTIMIZER_BYTES.items() if plain == key or plain.startswith(f"{key}_")]
    return found[0] if found else ADAM_BYTES


def _tensors(network: nn.Module) -> Iterator[torch.Tensor]:
    yield from network.parameters()
    yield from network.buffers()


def _quantized_linear(network: nn.Module) -> list[nn.Linear]:
    """Those that a run would quantize: the frozen linear layers, but not the output of a language model."""
    outputs = getattr(network, "get_output_embeddings", lambda: None)()
    return [
        module
        for module in network.modules()
        if isinstance(module, nn.Linear) and module is not outputs and not module.weight.requires_grad
    ]


def _measure_evaluation(network: nn.Module, task: Task, shape: Shape, plan: Plan) -> int:
    memory = LiveMemory(_tensors(network))
    weights = memory.now
    network.eval()
    with torch.no_grad(), memory:
        _forward(network, task, shape, plan)
    return memory.peak - weights


def _forward(network: nn.Module, task: Task, shape: Shape, plan: Plan) -> tuple[torch.Tensor, ...]:
    inputs = _make_inputs(network, task, shape)
    device = next(network.parameters()).device.type
    with contextlib.ExitStack() as stack:
        if plan.autocast is not None:
            cast = torch.autocast if plan.is_on_gpu else computing_in
            stack.enter_context(cast(device, plan.autocast))
        found = task.read_outputs(network(**inputs))
    return found if isinstance(found, tuple) else (found,)


def _make_inputs(network: nn.Module, task: Task, shape: Shape) -> dict[str, torch.Tensor]:
    if task.modality == "image":
        return {"pixel_values": torch.zeros(shape.rows, 3, shape.length, shape.length)}  # RGB, as collators make them
    ids = torch.zeros(shape.rows, shape.length, dtype=torch.long)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return inputs | ({"decoder_input_ids": ids} if network.config.is_encoder_decoder else {})


def _compute_loss(outputs: tuple[torch.Tensor, ...], task: Task, shape: Shape) -> torch.Tensor:
    """Cross-entropy in float32, at every place of the output, of whatever kind the labels are."""
    total = outputs[0].new_zeros((), dtype=torch.float32)
    for logits in outputs:
        logits = logits.float()
        if logits.dim() == 4:  # [B, C, h, w] of pixels, enlarged to the image
            logits = F.interpolate(logits, size=(shape.length, shape.length), mode="bilinear")
        elif logits.dim() == 3:  # [B, T, C] of tokens
            logits = logits.flatten(0, 1)
        labels = torch.zeros(logits.shape[:1] + logits.shape[2:], dtype=torch.long)
        total = total + F.cross_entropy(logits, labels, reduction="sum")
    return total


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without messages about recomputation, which nobody has asked for here."""
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.logging.set_verbosity(before)
