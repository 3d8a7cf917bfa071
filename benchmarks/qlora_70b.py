"""Does QLoRA train a 70B network on one 80 GB card, at what speed and how long may a text be? And 8B three ways?

    python benchmarks/qlora_70b.py                                  # the default cases, within --max_seconds
    python benchmarks/qlora_70b.py --cases 70b-qlora --no_search    # one case, without the longest sequence
    python benchmarks/qlora_70b.py --plan                           # the memory on paper; needs no GPU
    python benchmarks/qlora_70b.py --config tiny --sequence_length 64    # the same code within seconds, on a CPU

Networks have the shape of Llama 3 and random weights, so nothing is downloaded: memory and speed do not depend on the
values. They are built and trained in `llama_training.py`. Each case repeats one random batch, whose loss has to fall.
Results are written after each part of each case, so that a run that is killed keeps what it has. What should come out
is in `memory_plan.py`, with the formula of the MFU.
"""

import argparse
import gc
import json
import math
import os
import re
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import torch
from llama_training import Trainee, build_trainee, draw_batch, train_step
from memory_plan import (
    CASES,
    MEMORY_CAP_BYTES,
    PEAK_FLOPS,
    SHAPES,
    STEP,
    Case,
    Shape,
    count_attention_flops_per_token,
    count_flops_per_token,
    describe_plan,
    estimate_seconds,
    find_longest,
    plan_longest,
    plan_memory,
)

RESULTS = Path(__file__).parent / "results" / "qlora-70b.json"
DEFAULT_CASES = ("70b-qlora", "8b-full", "8b-lora", "8b-qlora")
SXM = ("NVIDIA H100 80GB HBM3", "NVIDIA H200")  # the cards whose peak is `PEAK_FLOPS`
UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
FIELDS = (
    *("status", "error", "bytes_asked", "case", "shape", "plan", "num_parameters", "num_trainable_parameters"),
    *("trainable_fraction", "adapter_bytes", "held_bytes", "build_seconds", "build_peak_memory_bytes"),
    *("sequence_length", "peak_memory_bytes", "peak_memory_kind", "peak_reserved_bytes", "step_seconds"),
    *("tokens_per_second", "flops_per_token", "mfu", "mfu_with_attention", "losses", "loss_before", "loss_after"),
    *("max_sequence_length", "search"),
)


def describe_network(trainee: Trainee, shape: Shape) -> dict[str, Any]:
    """How much there is, how much is trained, and the bytes that each is held in."""
    trained = trainee.trained()
    num_trained, num_bytes = sum(p.numel() for p in trained), sum(p.nbytes for p in trained)
    adapters = 0 if num_trained == shape.num_parameters else num_trained
    return {
        "num_parameters": shape.num_parameters + adapters,
        "num_trainable_parameters": num_trained,
        "trainable_fraction": num_trained / (shape.num_parameters + adapters),
        "adapter_bytes": num_bytes if adapters else 0,
    }


def count_held_bytes(trainee: Trainee) -> dict[str, int]:
    """Measured bytes of nf4 weights with their scales and tables, other frozen weights, trained ones, their optimizer.

    Tables that all states of an 8-bit optimizer share are not counted, nor are single numbers such as steps.
    """
    held = {"nf4_weights": 0, "other_weights": 0, "trained": 0, "optimizer": 0}
    for parameter in trainee.network.parameters():
        state = getattr(parameter, "quant_state", None)
        part = "trained" if parameter.requires_grad else "other_weights" if state is None else "nf4_weights"
        held[part] += parameter.nbytes
        if state is not None:
            scales = (state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code)
            held[part] += sum(tensor.nbytes for tensor in scales)
    for state in trainee.optimizer.state.values():
        tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
        held["optimizer"] += sum(t.nbytes for name, t in tensors.items() if t.ndim and "qmap" not in name)
    return held


def measure_steps(
    trainee: Trainee,
    shape: Shape,
    mode: str,
    length: int,
    num_steps: int,
    step: Callable[[Trainee, torch.Tensor], float] | None = None,
) -> dict[str, Any]:
    """Losses, speed and memory of steps on one batch; the first is a warm-up for the clock, not for the memory.

    `step` is another one than `train_step`.
    """
    from hftl.cost.memory import PeakMemory

    input_ids, losses, seconds = draw_batch(trainee, length), [], []
    with PeakMemory() as memory:
        for _ in range(num_steps):
            start = time.perf_counter()
            losses.append((step or train_step)(trainee, input_ids))
            seconds.append(time.perf_counter() - start)
    is_cuda = trainee.device.type == "cuda"
    rate = length / statistics.median(seconds[1:])
    flops, attention = count_flops_per_token(shape, mode), count_attention_flops_per_token(shape, length)
    has_peak = is_cuda and torch.cuda.get_device_name() in SXM
    return {
        **memory.describe(),
        "peak_reserved_bytes": torch.cuda.max_memory_reserved() if is_cuda else None,
        "held_bytes": count_held_bytes(trainee),
        "step_seconds": length / rate,
        "tokens_per_second": rate,
        "flops_per_token": flops,
        "mfu": rate * flops / PEAK_FLOPS if has_peak else None,
        "mfu_with_attention": rate * (flops + attention) / PEAK_FLOPS if has_peak else None,
        "losses": losses,
        "loss_before": losses[0],
        "loss_after": losses[-1],
        **judge_losses(losses),
    }


def judge_losses(losses: list[float]) -> dict[str, Any]:
    """Completed only if the network learned the batch that it saw again and again."""
    if all(map(math.isfinite, losses)) and losses[-1] < losses[0]:
        return {"status": "completed", "error": None}
    return {"status": "failed", "error": f"the loss of a repeated batch did not fall: {losses}"}


def release_memory(trainee: Trainee | None = None) -> None:
    """Give back what a step or a case left, so that the next one has the whole card."""
    if trainee is not None:
        trainee.optimizer.zero_grad(set_to_none=True)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def parse_bytes_asked(message: str) -> int | None:
    """From torch's "Tried to allocate 2.00 GiB"."""
    found = re.search(r"Tried to allocate ([\d.]+) (bytes|KiB|MiB|GiB)", message)
    return round(float(found[1]) * UNITS[found[2]]) if found else None


def search_sequence(trainee: Trainee, low: int, high: int | None, deadline: float, guess: int = 0) -> dict[str, Any]:
    """The longest sequence of which one step fits, or how far the search got by `deadline`.

    Args:
        trainee: as the steps before left it.
        low: fits.
        high: does not fit, or None.
        deadline: of `time.monotonic`; no step is begun that is likely to end after it.
        guess: tried first.
    """
    trials: list[dict[str, Any]] = []

    def fits(length: int) -> bool | None:
        pace = max((trial["seconds"] / trial["length"] for trial in trials), default=0.0)
        if time.monotonic() + pace * length > deadline:
            return None
        start, is_fitting = time.monotonic(), try_length(trainee, length)
        trials.append({"length": length, "fits": is_fitting, "seconds": time.monotonic() - start})
        return is_fitting

    longest, refused = find_longest(fits, low, high, guess)
    is_exact = refused is not None and refused - longest <= STEP
    search = {"shortest_out_of_memory": refused, "is_exact": is_exact, "trials": trials}
    return {"max_sequence_length": longest, "search": search}


def try_length(trainee: Trainee, length: int) -> bool:
    """Whether a step fits whose backward pass finds the states of the optimizer in memory."""
    release_memory(trainee)
    has_states = trainee.has_states()
    try:
        for _ in range(1 if has_states else 2):
            train_step(trainee, draw_batch(trainee, length))
    except torch.OutOfMemoryError:
        if not has_states:  # perhaps only half of one was made
            trainee.optimizer.state.clear()
        return False
    return True


# --- cases and results


def run_case(
    name: str, shape: Shape, options: argparse.Namespace, deadline: float, write: Callable[[dict], None]
) -> None:
    """Build, train and search one case; `write` gets its record after the steps and after the search."""
    case, device, length = CASES[name], find_device(), options.sequence_length
    record = dict.fromkeys(FIELDS) | {"case": asdict(case), "shape": asdict(shape), "sequence_length": length}
    record["plan"] = plan_memory(shape, case, length)
    trainee = None
    with recorded(record):
        trainee, built = build_measured(shape, case, device)
        record |= built
        record |= measure_steps(trainee, shape, case.mode, length, options.num_steps)
    write(record)
    if trainee is None or record["status"] == "failed" or not options.search:
        return
    low, high = (length, None) if record["status"] == "completed" else (0, length)
    if high is not None:
        trainee.optimizer.state.clear()  # perhaps only half of one was made
    with recorded(record):
        record |= search_sequence(trainee, low, high, deadline, plan_longest(shape, case))
    write(record)


@contextmanager
def recorded(record: dict[str, Any]) -> Iterator[None]:
    """Make running out of memory a result, and any other error one too: the next cases are worth their GPU time."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        record |= {"status": "out_of_memory", "error": str(error), "bytes_asked": parse_bytes_asked(str(error))}
        if torch.cuda.is_available():
            peaks = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
            record |= dict(zip(("peak_memory_bytes", "peak_reserved_bytes"), peaks, strict=True))
            record["peak_memory_kind"] = "cuda_allocated"
    except Exception as error:
        traceback.print_exc()
        record |= {"status": "failed", "error": f"{type(error).__name__}: {error}"}


def build_measured(shape: Shape, case: Case, device: torch.device) -> tuple[Trainee, dict[str, Any]]:
    """What is trained in a case, with what building it took."""
    from hftl.cost.memory import PeakMemory

    start = time.monotonic()
    with PeakMemory() as memory:
        trainee = build_trainee(shape, case, device)
        described = describe_network(trainee, shape)
    seconds, peak = time.monotonic() - start, memory.describe()["peak_memory_bytes"]
    return trainee, described | {"build_seconds": seconds, "build_peak_memory_bytes": peak}


def find_device() -> torch.device:
    """The current CUDA device, or the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def cap_memory() -> None:
    """Let torch take `MEMORY_CAP_BYTES` of the card and no more: an H200 gives the answers of an 80 GB card."""
    if torch.cuda.is_available():
        total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, MEMORY_CAP_BYTES / total))


def run_cases(shapes: dict[str, Shape], options: argparse.Namespace, content: dict[str, Any]) -> None:
    """Every case that there is time for, each with its share of the time that is left; `content` is written often."""
    end = time.monotonic() + options.max_seconds
    needed = {
        name: estimate_seconds(shapes[name], CASES[name], options.sequence_length, options.num_steps)
        for name in options.cases
    }
    for index, name in enumerate(options.cases):
        later = options.cases[index + 1 :]
        spare = end - time.monotonic() - sum(needed[other] for other in options.cases[index:])

        def write(record: dict[str, Any], name: str = name) -> None:
            content["cases"][name] = record
            write_results(content, options.output)

        if time.monotonic() + needed[name] > end:
            write(dict.fromkeys(FIELDS) | {"status": "not run: time"})
        else:
            share = needed[name] + max(0.0, spare) / (len(later) + 1)
            run_case(name, shapes[name], options, time.monotonic() + share, write)
            release_memory()
        print(describe_case(name, content["cases"][name]), flush=True)


def describe_case(name: str, record: dict[str, Any]) -> str:
    """One line."""
    shown = ("peak_memory_bytes", "peak_reserved_bytes", "bytes_asked", "tokens_per_second", "mfu", "step_seconds")
    shown += ("trainable_fraction", "adapter_bytes", "loss_before", "loss_after", "max_sequence_length", "error")
    values = {key: f"{record[key]:.5g}" if isinstance(record[key], float) else record[key] for key in shown}
    given = [f"{key} {str(value)[:160]}" for key, value in values.items() if value is not None]
    return "; ".join([f"{name}: {record['status']}", *given])


def write_results(content: dict[str, Any], output: Path) -> None:
    """To `output`, and into the folder of the environment variable OUT if there is one."""
    from hftl.runtime.files import write_atomically

    # What is not a finite number becomes its name: JSON has none.
    text = json.dumps(json.loads(json.dumps(content), parse_constant=str), indent=1) + "\n"
    for path in [output] + ([Path(os.environ["OUT"]) / output.name] if os.environ.get("OUT") else []):
        write_atomically(path, text.encode())


def parse(words: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(DEFAULT_CASES))
    parser.add_argument("--config", choices=("llama3", "tiny"), default="llama3", help="tiny: every case, for a CPU")
    parser.add_argument("--sequence_length", type=int, default=2048)
    parser.add_argument("--num_steps", type=int, default=6, help="the first of them is not timed")
    parser.add_argument("--search", action="store_true", default=torch.cuda.is_available())
    parser.add_argument("--no_search", dest="search", action="store_false")
    parser.add_argument("--max_seconds", type=float, default=540, help="for all cases together")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--commit", help="where this is a copy without its history")
    parser.add_argument("--plan", action="store_true", help="print the memory on paper and stop")
    options = parser.parse_args(words)
    if options.sequence_length < 2 or options.num_steps < 2:
        parser.error("--sequence_length and --num_steps are 2 or more")
    if not options.plan and options.config != "tiny" and not torch.cuda.is_available():
        parser.error("there is no CUDA device; --config tiny runs on a CPU, --plan needs no device")
    if options.search and not torch.cuda.is_available():
        parser.error("--search needs a CUDA device: the memory of a CPU is not capped")
    return options


def main(words: list[str] | None = None) -> int:
    """Run the cases; returns 1 if one failed in another way than for want of memory or time."""
    options = parse(words)
    shapes = {name: SHAPES[case.shape if options.config == "llama3" else "tiny"] for name, case in CASES.items()}
    if options.plan:
        print(describe_plan(shapes, options.sequence_length))
        return 0
    from hftl.run_record import describe_environment

    cap_memory()
    environment = describe_environment()
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
    content = {
        "date": date.today().isoformat(),
        "command": " ".join(["python benchmarks/qlora_70b.py", *(sys.argv[1:] if words is None else words)]),
        "commit": options.commit or environment["git_commit"],
        "environment": environment,
        "config": settings | {"allocator": os.environ.get("PYTORCH_CUDA_ALLOC_CONF"), "attention": "sdpa"},
        "memory_cap_bytes": MEMORY_CAP_BYTES if torch.cuda.is_available() else None,
        "mfu": f"tokens/s x (4 x frozen + 6 x trained weights in matrix products) / {PEAK_FLOPS:.3g} FLOP/s",
        "cases": {},
    }
    run_cases(shapes, options, content)
    return int(any(record["status"] == "failed" for record in content["cases"].values()))


if __name__ == "__main__":
    sys.exit(main())
