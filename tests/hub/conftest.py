"""Tiny runs of every kind, made once, to publish."""

import shutil
from pathlib import Path

import pytest

from hftl.config import parse_args
from hftl.training.run import run
from tests import tiny

KINDS = {
    "text-full": ("full", "text"),
    "text-scratch": ("scratch", "text"),
    "text-probe": ("probe", "text"),
    "text-peft": ("peft", "text"),
    "text-prompt": ("peft", "text", "--adapter", "prompt", "--max_length", "10"),
    "text-tokens": ("peft", "tokens"),
    "text-nf4": ("peft", "text", "--quantization", "nf4"),
    "text-bfloat16": ("peft", "text", "--dtype", "bfloat16"),
    "text-multi-label": ("full", "multi"),
    "text-pair-regression": ("full", "pair"),
    "image-full": ("full", "image"),
    "image-scratch": ("scratch", "image"),
    "image-probe": ("probe", "image"),
    "image-peft": ("peft", "image"),
    "lm-full": ("full", "lm"),
    "lm-peft": ("peft", "lm"),
    "lm-tokens": ("peft", "lmtokens"),
    "chat-peft": ("peft", "chat"),
}


@pytest.fixture(scope="session")
def published_files(tmp_path_factory) -> Path:
    """Checkpoints and data."""
    folder = tiny.write_text_task(tmp_path_factory.mktemp("to-publish"))
    tiny.write_tiny_vit(folder / "vit")
    tiny.write_tiny_convnet(folder / "convnet")
    tiny.write_tiny_llama(folder / "llama")
    for name in ("bert", "llama"):
        tiny.add_token(folder / name, folder / f"{name}-tokens")
    tiny.write_image_folder(folder / "photos" / "train", 8)
    tiny.write_image_folder(folder / "photos" / "test", 3, seed=1)
    for split, count in (("train", 24), ("test", 9)):
        rows = tiny.make_texts(count, seed=len(split))
        multi = [{"text": row["text"], "label": [row["label"], "xyz"[i % 3]]} for i, row in enumerate(rows)]
        tiny.write_jsonl(folder / f"multi-{split}.jsonl", multi)
        pairs = zip(rows, rows[1:] + rows[:1], strict=True)
        scored = [{"a": a["text"], "b": b["text"], "score": float(a["label"] == b["label"]) + 0.5} for a, b in pairs]
        tiny.write_jsonl(folder / f"pair-{split}.jsonl", scored)
        marked = [row | {"text": f"xyzzy {row['text']}"} for row in rows]
        tiny.write_jsonl(folder / f"tokens-{split}.jsonl", marked)
        completions = tiny.make_completions(count, seed=len(split))
        tiny.write_jsonl(folder / f"lm-{split}.jsonl", completions)
        marked = [row | {"completion": f" xyzzy{row['completion']}"} for row in completions]
        tiny.write_jsonl(folder / f"lmtokens-{split}.jsonl", marked)
        roles = (("user", "prompt"), ("assistant", "completion"))
        chats = [{"messages": [{"role": r, "content": row[k]} for r, k in roles]} for row in completions]
        tiny.write_jsonl(folder / f"chat-{split}.jsonl", chats)
    return folder


def list_flags(files: Path, data: str) -> list[str]:
    """The flags of a kind of data."""
    if data == "image":
        return ["--task", "image-classification", "--dataset", f"{files}/photos"]
    start, ending = ("", "csv") if data == "text" else (f"{data}-", "jsonl")
    words = ["--train_file", f"{files}/{start}train.{ending}", "--test_file", f"{files}/{start}test.{ending}"]
    if data == "pair":
        words += ["--text_columns", "a", "b", "--label_column", "score", "--problem_type", "regression"]
    return words + (["--task", "causal-lm"] if data in ("lm", "lmtokens", "chat") else [])


def name_checkpoint(kind: str) -> str:
    """Images of the adapter go through a network with BatchNorm."""
    if kind.startswith("image"):
        return "convnet" if kind in ("image-peft", "image-scratch") else "vit"
    name = "bert" if kind.startswith("text") else "llama"
    return f"{name}-tokens" if kind.endswith("tokens") else name


@pytest.fixture(scope="session")
def make_run(published_files, tmp_path_factory):
    """Function: kind and more flags -> run folder, each made once and not to be changed."""
    made = {}

    def make(kind: str, *flags: str) -> Path:
        if (kind, flags) not in made:
            mode, data, *more = KINDS[kind]
            out = tmp_path_factory.mktemp("runs") / kind
            words = [*list_flags(published_files, data), "--use_cpu", "--max_steps", "3", "--output_dir", str(out)]
            words += ["--model_name_or_path", f"{published_files}/{name_checkpoint(kind)}", *more, *flags]
            run(parse_args(words, mode=mode))
            made[kind, flags] = out
        return made[kind, flags]

    return make


@pytest.fixture
def copy_run(make_run, tmp_path):
    """Function: kind -> a copy of its run folder, which the test may change."""

    def copy(kind: str) -> Path:
        return Path(shutil.copytree(make_run(kind), tmp_path / kind))

    return copy
