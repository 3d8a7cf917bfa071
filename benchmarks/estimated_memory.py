"""Is the memory that `hftl estimate` predicts what a GPU allocates? `python benchmarks/estimated_memory.py [--cpu]`.

Networks with random weights make two real optimizer steps in each mode, in bfloat16 by autocast; the peak that torch
allocated is put beside the prediction. Without a GPU (`--cpu`) a tiny network goes the same way, counted storage by
storage.
"""

import argparse
import json
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

import torch
import transformers

from hftl.config import parse_args
from hftl.models.head import head_modules
from hftl.models.load import read_config
from hftl.models.modes import find_mode
from hftl.preview.live_memory import LiveMemory
from hftl.preview.step import Plan, Shape, Simulator, _compute_loss, _forward, build_network
from hftl.run_record import describe_environment
from hftl.tasks import build_task
from hftl.tasks.base import Task

LLAMA = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32}
CASES = {
    "bert-base": ("text-classification", transformers.BertConfig(), Shape(64, 128)),
    "vit-base": ("image-classification", transformers.ViTConfig(), Shape(64, 224)),
    "resnet-50": ("image-classification", transformers.ResNetConfig(), Shape(64, 224)),
    "llama-1b": ("causal-lm", transformers.LlamaConfig(**LLAMA, vocab_size=32000), Shape(2, 1024)),
}
TINY = {
    "bert": (
        "text-classification",
        transformers.BertConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128),
        Shape(8, 32),
    ),
}
RESULT = Path(__file__).parent / "results" / "estimated-memory.json"


def measure(model: Any, task: Task, shape: Shape, device: str) -> int:
    """Peak bytes of two real steps."""
    network = getattr(transformers, task.auto_model).from_config(read_config(model, task))
    heads = head_modules(network, [], has_new_head=task.has_new_head)
    network = find_mode(model.mode).adapt(network, model, heads, task.peft_task_type, range(0)).to(device).train()
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], fused=True)
    memory = LiveMemory([*network.parameters(), *network.buffers()])
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with memory, torch.device(device):
        for _ in range(2):
            plan = Plan(torch.bfloat16)
            loss = _compute_loss(_forward(network, task, shape, plan), task, shape)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return torch.cuda.max_memory_allocated() if device == "cuda" else memory.peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu", action="store_true", help="tiny networks on the CPU; nothing is written")
    is_cpu = parser.parse_args().cpu
    device, found = "cpu" if is_cpu else "cuda", {}
    for name, (task_name, config, shape) in (TINY if is_cpu else CASES).items():
        for mode in ("full", "peft"):
            with tempfile.TemporaryDirectory() as folder:
                config.save_pretrained(folder)
                words = ["--task", task_name, "--dataset", "x", "--model_name_or_path", folder]
                args, task = parse_args([*words, "--output_dir", folder], mode=mode), build_task(task_name)
                predicted = Simulator(build_network(args.model, task), task, Plan(torch.bfloat16)).make(shape).peak
                measured = measure(args.model, task, shape, device)
            found[f"{name} {mode}"] = {"predicted": predicted, "measured": measured, "ratio": predicted / measured}
            print(f"{name} {mode}: predicted {predicted / 2**30:.2f} GiB, {predicted / measured:.3f} of the measured")
            if not is_cpu:
                torch.cuda.empty_cache()
    if not is_cpu:
        content = {
            "date": date.today().isoformat(),
            "command": "python benchmarks/estimated_memory.py",
            "cases": found,
        }
        RESULT.write_text(json.dumps(content | {"environment": describe_environment()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
