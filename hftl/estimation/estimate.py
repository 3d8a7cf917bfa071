"""What would each mode take of these settings, and does it fit? Puts simulated steps beside a card or this machine."""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hftl.config import Arguments
from hftl.cost.devices import find_capacity, find_peak_flops
from hftl.cost.energy import find_by_device
from hftl.cost.headroom import measure_headroom
from hftl.cost.prices import load_prices
from hftl.errors import UserError
from hftl.estimation.step import Plan, Shape, Simulator, Step, build_network
from hftl.models.adapters import check_adapter
from hftl.models.length import load_processor
from hftl.models.load import read_config
from hftl.models.modes import BATCH_SIZE, find_mode
from hftl.models.targets import is_convolutional
from hftl.precision import choose_autocast
from hftl.tasks import build_task
from hftl.tasks.base import Task
from hftl.tasks.image_classification import processed_size
from hftl.tasks.positions import build_empty, count_positions
from hftl.training_flags import check_values

# Tokens of a text where --max_length says nothing.
LENGTHS = {"text": 128, "language": 1024}
# Share of a card's peak that training reaches; measured on an H100 with BERT-base, ViT-B/16 and Llama 8B with LoRA in
# 2026-11 (benchmarks/gpu_throughput.py). For other cards and networks it is an assumption; for convolutions nothing is
# known.
PEAK_SHARES = {"text": 0.22, "image": 0.27, "language": 0.28}
ROWS_OF_AN_EPOCH = 1000  # where their number is not given


@dataclass(frozen=True)
class Arm:
    """One mode and what it would take.

    Attributes:
        name: full, the adapter's name, qlora, probe or scratch.
        step: at the shape that was asked for.
        largest_rows: the most rows of a step that fit, 0 if none.
        longest: the longest rows that fit, as many at a time as asked for; None for images.
        seconds: of an epoch, forward and backward passes alone; None where the card's speed is not known.
        money: rent for these seconds.
    """

    name: str
    step: Step
    largest_rows: int
    longest: int | None
    seconds: float | None
    money: float | None


@dataclass(frozen=True)
class Estimate:
    """Every arm on one card or machine.

    Attributes:
        network: class name and what it starts from.
        place: the card, or `this machine`.
        capacity: bytes that tensors can have there.
        shape: rows of a step and their length.
        num_rows: of an epoch.
        arms: that are possible; what is not stands in `left_out` with the reason.
        chosen: the arm of `--mode`, if it was given.
    """

    network: str
    place: str
    capacity: int
    precision: str
    shape: Shape
    num_rows: int
    currency: str
    arms: tuple[Arm, ...]
    left_out: dict[str, str]
    chosen: str | None


def estimate(args: Arguments, gpu: str | None) -> Estimate:
    """Simulate a step of every mode.

    Args:
        args: as for `hftl train`; data are not read.
        gpu: name or size of a card; None for this machine.

    Raises:
        UserError: no such card, or no configuration that can be read.
    """
    check_values(args.given)
    task = build_task(args.data.task)
    if not args.model.model_name_or_path:
        raise UserError("Give --model_name_or_path: a Hub id, a folder, or bundled:minilm-l6.")
    config = read_config(args.model, task)
    capacity = find_capacity(gpu) if gpu else measure_headroom(args.training.device)
    shape = _choose_shape(args, task, config)
    num_rows = args.data.num_train_examples or ROWS_OF_AN_EPOCH
    arms, left_out, precisions = [], {}, set()
    for name, model in _list_models(args, task):
        try:
            if model.mode == "peft":
                check_adapter(model, config, task)
            network = build_network(model, task)
        except UserError as error:
            left_out[name] = str(error)
            continue
        plan = _plan(args, model, network, gpu)
        precisions.add(plan.autocast)
        arms.append(_estimate_arm(name, Simulator(network, task, plan), shape, capacity, gpu, num_rows))
    return Estimate(
        network=f"{config.model_type} of {args.model.model_name_or_path}",
        place=gpu or "this machine",
        capacity=capacity,
        precision="float32" if precisions <= {None} else "bfloat16",
        shape=shape,
        num_rows=num_rows,
        currency=load_prices().currency,
        arms=tuple(arms),
        left_out=left_out,
        chosen=_name_of(args.model) if args.model.mode else None,
    )


def _list_models(args: Arguments, task: Task) -> Iterator[tuple[str, Any]]:
    for mode in task.modes:
        if mode == "zero-shot":
            continue
        model = dataclasses.replace(args.model, mode=mode, quantization="none")
        if mode == "peft":
            yield _name_of(model), model
            model = dataclasses.replace(model, quantization="nf4")
        yield _name_of(model), model


def _name_of(model: Any) -> str:
    if model.mode != "peft":
        return model.mode
    if model.quantization == "none":
        return model.adapter
    return "qlora" if model.adapter == "lora" else f"{model.adapter} on {model.quantization}"


def _plan(args: Arguments, model: Any, network: torch.nn.Module, gpu: str | None) -> Plan:
    is_trained, is_quantized = find_mode(model.mode).is_trained, model.quantization == "nf4"
    autocast = None
    if gpu is not None and is_trained and args.given.get("bf16") is not False:
        autocast = torch.bfloat16
    elif gpu is None and not is_quantized:
        autocast = choose_autocast(dataclasses.replace(args, model=model), network)
    return Plan(
        autocast,
        args.training.optim if "optim" in args.given else Plan.optim,
        is_trained=is_trained,
        is_checkpointed=args.training.gradient_checkpointing,
        is_quantized=is_quantized,
        is_on_gpu=gpu is not None,
    )


def _estimate_arm(name: str, simulator: Simulator, shape: Shape, capacity: int, gpu: str | None, num_rows: int) -> Arm:
    step = simulator.make(shape)
    seconds = _predict_seconds(step, shape, simulator, gpu, num_rows)
    is_image = simulator.task.modality == "image"
    return Arm(
        name,
        step,
        largest_rows=_find_most_rows(simulator, step, shape, capacity),
        longest=None if is_image else _find_longest(simulator, shape, capacity),
        seconds=seconds,
        money=_price(seconds, gpu),
    )


def _choose_shape(args: Arguments, task: Task, config: Any) -> Shape:
    is_given = "per_device_train_batch_size" in args.given
    rows = args.training.per_device_train_batch_size if is_given else BATCH_SIZE
    if task.modality == "image":
        return Shape(rows, args.data.image_size or _read_image_size(args, task, config))
    positions = count_positions(build_empty(task.auto_model, config))
    return Shape(rows, args.data.max_length or min(LENGTHS[task.modality], positions or LENGTHS[task.modality]))


def _read_image_size(args: Arguments, task: Task, config: Any) -> int:
    """What the checkpoint's image processor makes; DINOv2's configuration names another size."""
    try:
        return processed_size(load_processor(args.model, task, args.data))
    except UserError:  # there is none
        size = getattr(config, "image_size", None) or 224
        return size if isinstance(size, int) else size[0]


def _find_most_rows(simulator: Simulator, step: Step, shape: Shape, capacity: int) -> int:
    """Memory grows with the rows in a straight line."""
    double = simulator.find_peak(dataclasses.replace(shape, rows=2 * shape.rows))
    slope = (double - step.peak) / shape.rows
    room = capacity - (step.peak - slope * shape.rows)
    return max(0, math.floor(room / slope)) if slope > 0 else 0


def _find_longest(simulator: Simulator, shape: Shape, capacity: int) -> int:
    """The longest rows that fit, from a parabola through three lengths: attention may grow with their square."""
    limit = count_positions(simulator.network)
    longest = min(2 * shape.length, limit or 2 * shape.length)
    lengths = sorted({max(8, longest // 4), max(8, longest // 2), longest})
    peaks = [simulator.find_peak(dataclasses.replace(shape, length=length)) for length in lengths]
    curve = np.polyfit(lengths, peaks, len(lengths) - 1)
    low, high = 0, limit or 2**20
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if np.polyval(curve, middle) <= capacity else (low, middle - 1)
    return low


def _predict_seconds(step: Step, shape: Shape, simulator: Simulator, gpu: str | None, num_rows: int) -> float | None:
    peak = find_peak_flops(gpu.replace("-", " ")) if gpu else None
    if peak is None or is_convolutional(simulator.network):
        return None
    return step.flops / shape.rows * num_rows / (peak * PEAK_SHARES[simulator.task.modality])


def _price(seconds: float | None, gpu: str | None) -> float | None:
    rent = find_by_device(load_prices().gpu_hour, gpu.replace("-", " ")) if gpu else None
    return None if seconds is None or rent is None else seconds / 3600 * rent


def as_dict(found: Estimate) -> dict[str, Any]:
    """For JSON; bytes, seconds and operations as numbers."""
    content = dataclasses.asdict(found)
    for arm, values in zip(found.arms, content["arms"], strict=True):
        values["step"]["peak"] = arm.step.peak
        values["fits"] = arm.step.peak <= found.capacity
    return content


def check_chosen(found: Estimate) -> None:
    """Raises:
    UserError: the mode that was asked for does not fit; says which does.
    """
    arm = next((arm for arm in found.arms if arm.name == found.chosen), None)
    if arm is None or arm.step.peak <= found.capacity:
        return
    needs = (
        f"{found.chosen} takes {arm.step.peak / 2**30:.1f} GiB of the {found.capacity / 2**30:.1f} of {found.place}"
    )
    if arm.largest_rows:
        raise UserError(
            f"{needs}. --per_device_train_batch_size {arm.largest_rows} fits, with --gradient_accumulation_steps "
            f"{math.ceil(found.shape.rows / arm.largest_rows)}."
        )
    fitting = [other.name for other in sorted(found.arms, key=lambda arm: -arm.step.peak) if other.largest_rows]
    advice = f"With fewer rows a step {', '.join(fitting)} fit." if fitting else "No mode fits, whatever the batch."
    raise UserError(f"{needs}, and a single row does not fit. {advice}")
