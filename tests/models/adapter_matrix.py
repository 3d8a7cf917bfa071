"""Every adapter on every kind of network: does it train, leave the base alone, and come back from disk the same?

`python -m tests.models.adapter_matrix` writes the outcomes into docs/adapters.md; test_adapter_matrix.py
compares.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import nn

from hftl.config import ModelArguments
from hftl.errors import UserError
from hftl.models.adapters import ADAPTERS, check_adapter
from hftl.models.head import head_modules
from hftl.models.modes import MODES
from hftl.tasks import TASKS
from tests.networks import (
    IMAGE_NETWORKS,
    IMAGE_ONLY_ADAPTED,
    IMAGE_SIZE,
    TEXT_NETWORKS,
    TEXT_ONLY_ADAPTED,
    VOCABULARY,
    build_network,
)

PAGE = Path(__file__).parents[2] / "docs" / "adapters.md"
START, END = "<!-- matrix -->", "<!-- /matrix -->"
WORKS, REFUSED = "yes", "-"
TEXT, IMAGES = TEXT_NETWORKS | TEXT_ONLY_ADAPTED, IMAGE_NETWORKS | IMAGE_ONLY_ADAPTED
NETWORKS = TEXT | IMAGES

# In a process of its own: plain transformers and peft, and logits that must be those of the trained network.
RELOAD = """
import sys
from pathlib import Path
import torch, transformers
from peft import PeftModel
transformers.utils.logging.disable_progress_bar()
for folder in sorted(Path(sys.argv[1]).iterdir()):
    stored = torch.load(folder / "logits.pt", weights_only=True)
    base = getattr(transformers, stored["network"]).from_pretrained(folder / "base")
    network = base if stored["is_whole"] else PeftModel.from_pretrained(base, folder / "adapter")
    with torch.inference_mode():
        logits = network.eval()(**stored["batch"]).logits
    print(folder.name, float((logits - stored["logits"]).abs().max()))
"""


def build_batch(name: str) -> dict[str, torch.Tensor]:
    """Four rows for a network of `NETWORKS`."""
    generator = torch.Generator().manual_seed(3)
    if name in IMAGES:
        return {"pixel_values": torch.randn(4, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator)}
    words = torch.randint(3, VOCABULARY, (4, 9), generator=generator)
    words[:, -1] = 2  # where T5's classifier reads
    return {"input_ids": words, "attention_mask": torch.ones(4, 9, dtype=torch.long)}


def try_adapter(adapter: str, name: str, folder: Path) -> str:
    """Train three steps, check what moved, and leave adapter and logits in `folder`; says what came out.

    Raises:
        AssertionError: something of the base moved, or nothing of the adapter.
    """
    network = build_network(name)
    for parameter_name, parameter in network.named_parameters():
        if "layer_scale" in parameter_name:  # ConvNeXt and DINOv2: at 1e-6 a block is as good as absent
            parameter.data.fill_(1.0)
    heads = head_modules(network, [])
    args = ModelArguments(adapter=adapter, lora_r=4, lora_alpha=4, num_virtual_tokens=4)
    try:
        check_adapter(args, network.config, TASKS["text-classification" if name in TEXT else "image-classification"]())
    except UserError:
        return REFUSED
    before = {key: value.clone() for key, value in network.state_dict().items()}
    network.save_pretrained(folder / "base")
    torch.manual_seed(1)
    try:
        adapted = MODES["peft"].adapt(network, args, heads, "SEQ_CLS" if name in TEXT else None)
    except UserError:
        return REFUSED
    if ADAPTERS[adapter].initialize is not None:
        ADAPTERS[adapter].initialize(adapted, lambda: [build_batch(name)])
    started = {key: value.clone() for key, value in adapted.state_dict().items()}
    train_steps(adapted, build_batch(name))
    _check_what_moved(adapted, started, before, heads, rewrites_base=ADAPTERS[adapter].rewrites_base)
    with torch.inference_mode():
        logits = adapted.eval()(**build_batch(name)).logits
    is_whole = adapted is network
    adapted.save_pretrained(folder / ("base" if is_whole else "adapter"))
    stored = {"network": type(network).__name__, "batch": build_batch(name), "logits": logits, "is_whole": is_whole}
    torch.save(stored, folder / "logits.pt")
    return WORKS


def train_steps(adapted: nn.Module, batch: dict[str, torch.Tensor]) -> None:
    """Three steps towards labels of four rows."""
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=0.02)
    adapted.train()
    for _ in range(3):
        logits = adapted(**batch).logits
        nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2, 0])).backward()
        optimizer.step()
        optimizer.zero_grad()


def _check_what_moved(
    adapted: nn.Module, started: dict, before: dict, heads: list[str], *, rewrites_base: bool
) -> None:
    state = adapted.state_dict()
    moved = {key for key in state if not torch.equal(state[key], started[key])}
    is_whole = not any(key.startswith("base_model.") for key in state)
    of_heads = {key for key in moved if "modules_to_save" in key or key.startswith(tuple(heads))}
    assert of_heads, "the head did not move"
    statistics = {key for key in moved if ".running_" in key or "num_batches_tracked" in key}
    assert not statistics or is_whole, statistics  # an adapter would not save them
    assert moved - of_heads - statistics, "nothing else moved"
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert moved - statistics <= trained, sorted(moved - statistics - trained)
    for key, value in before.items():
        if rewrites_base or key in statistics:  # a part of the base is taken out at the start
            continue
        kept = [name for name in state if key in _plain_names(name) and name not in trained]
        assert all(torch.equal(state[name], value) for name in kept), key
        assert kept or key in trained, f"{key} is gone"


def _plain_names(name: str) -> set[str]:
    """The names that a weight of the base may have had before it was wrapped."""
    inner = re.sub(r"\.(base_layer|original_module)(?=\.)", "", name)
    return {inner, inner.removeprefix("base_model."), inner.removeprefix("base_model.model.")}


def measure(root: Path) -> dict[tuple[str, str], str]:
    """Outcomes of all pairs, with what a fresh process makes of the saved ones."""
    outcomes = {}
    for adapter in ADAPTERS:
        for name in NETWORKS:
            folder = root / f"{adapter}+{name}"
            folder.mkdir()
            try:
                outcomes[adapter, name] = try_adapter(adapter, name, folder)
            except Exception as error:
                raise AssertionError(f"{adapter} on {name}: {error}") from error
            if outcomes[adapter, name] == REFUSED:
                for path in sorted(folder.rglob("*"), reverse=True):
                    path.rmdir() if path.is_dir() else path.unlink()
                folder.rmdir()
    lines = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RELOAD, str(root)], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    reloaded = {tuple(line.split()[0].split("+")): float(line.split()[1]) for line in lines}
    assert reloaded.keys() == {pair for pair, outcome in outcomes.items() if outcome == WORKS}
    wrong = {pair: difference for pair, difference in reloaded.items() if difference > 1e-5}
    assert not wrong, wrong
    return outcomes


def write_table(outcomes: dict[tuple[str, str], str]) -> str:
    """The outcomes as a Markdown table."""
    names = list(NETWORKS)
    lines = ["| --adapter | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for adapter in ADAPTERS:
        lines.append(f"| `{adapter}` | " + " | ".join(outcomes[adapter, name] for name in names) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        table = write_table(measure(Path(temporary)))
    text = PAGE.read_text(encoding="utf-8")
    head, rest = text.split(START)
    PAGE.write_text(f"{head}{START}\n\n{table}\n\n{END}{rest.split(END)[1]}", encoding="utf-8")
