"""Which files of a run folder go up, which stay, and are they still the files that the run saved?

Only names on a list go up. Whatever else is in the folder and is not a file that hftl leaves there stops the push,
because nobody knows what it is.
"""

import hashlib
import json
import re
import struct
from collections.abc import Iterable, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import get_token

from hftl.records import CANARY_FILE, redact

CARD = "README.md"
STATE_FILE = "push.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
# What `save_pretrained` of networks, adapters, tokenizers and image processors writes.
ALLOWED = (
    *("config.json", "generation_config.json", "model.safetensors", "model-*-of-*.safetensors"),
    *("model.safetensors.index.json", ADAPTER_CONFIG, ADAPTER_WEIGHTS),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("chat_template.jinja", "vocab.txt", "vocab.json", "merges.txt", "spiece.model"),
    *("sentencepiece.bpe.model", "tokenizer.model", "preprocessor_config.json", "processor_config.json"),
)
# What hftl, Trainer and peft leave in a run folder, and what is of no use to others or private. README.md is peft's;
# the one that goes up is rendered from run.json.
STAYING = (
    *("run.json", "config.yaml", "predictions.parquet", CANARY_FILE, STATE_FILE, CARD, "merge.json"),
    *("trainer_state.json", "checkpoint-*", "runs", ".*.tmp", "_tmp-*", ".lock"),
)
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt", "*.joblib", "*.npy")
CONFIGURATIONS = ("*config.json", "*_map.json", "*.jinja", CARD)  # where a path can only be a mistake
TEXTS = ("*.json", "*.txt", "*.jinja", "*.md", "*.yaml", "*.yml", ".env*", "*.html", "*.csv", "*.log")
LOCAL_PATH = re.compile(
    r"(?<![\w./:~-])(?:/(?:home|root|Users|mnt|data|tmp|var|opt|srv|work|workspace|scratch|private|media|usr|content)/"
    r"|[A-Za-z]:\\\\?)[^\s\"'<>|)]+"
)
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class Problem(NamedTuple):
    """What the gate has against a push: the name of the check, and what was found."""

    check: str
    text: str

    def __str__(self) -> str:
        return f"{self.check}: {self.text}"


def is_allowed(name: str) -> bool:
    """Whether a file of that name may go up."""
    return any(fnmatch(name, pattern) for pattern in ALLOWED)


def list_files(folder: Path) -> list[Path]:
    """The files of a run folder that may go up, in the order of their names."""
    return sorted(path for path in folder.iterdir() if path.is_file() and is_allowed(path.name))


def record_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Name -> bytes and sha256 of what a run has saved, for `run.json`."""
    paths = [*list_files(folder), *([folder / CANARY_FILE] if (folder / CANARY_FILE).is_file() else [])]
    return {path.name: {"bytes": path.stat().st_size, "sha256": compute_sha256(path)} for path in paths}


def compute_sha256(path: Path) -> str:
    """The hex digest of a file."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def check_names(folder: Path) -> list[Problem]:
    """Pickles, second models and files that nobody knows."""
    problems, names = [], {path.name for path in folder.iterdir()}
    for path in sorted(folder.iterdir()):
        if any(fnmatch(path.name, pattern) for pattern in STAYING) or (path.is_file() and is_allowed(path.name)):
            continue
        if path.is_dir() and (path / ADAPTER_CONFIG).is_file():
            problems.append(Problem("two adapters", f"{path.name}/ holds another adapter; push each run by itself"))
        elif path.is_file() and any(fnmatch(path.name, pattern) for pattern in PICKLES):
            problems.append(Problem("pickle", f"{path.name} can run code when it is loaded; take it out"))
        else:
            kind = "folder" if path.is_dir() else "file"
            problems.append(Problem("stray file", f"the {kind} {path.name} is none of hftl's; take it out"))
    if {ADAPTER_CONFIG, "config.json"} <= names and any(name.startswith("model") for name in names):
        problems.append(Problem("two models", "there are whole weights (model*.safetensors) beside an adapter"))
    return problems


def check_digests(folder: Path, saved: Mapping[str, Mapping[str, Any]]) -> list[Problem]:
    """What is missing, new, cut or changed since the run saved it."""
    problems = []
    present = {path.name for path in list_files(folder)}
    for name, file in saved.items():
        path = folder / name
        if not path.is_file():
            problems.append(Problem("file missing", f"{name}, which the run saved"))
        elif path.stat().st_size < file["bytes"]:
            size = f"{path.stat().st_size:,} of {file['bytes']:,} bytes"
            problems.append(Problem("file truncated", f"{name} has {size}"))
        elif compute_sha256(path) != file["sha256"]:
            problems.append(Problem("file changed", f"{name} has another sha256 than when the run saved it"))
    problems += [Problem("stray file", f"{name} came after the run") for name in sorted(present - saved.keys())]
    return problems


def check_texts(paths: Iterable[Path]) -> list[Problem]:
    """Tokens in any text, and paths of this machine in configurations."""
    problems, token = [], get_token()
    for path in paths:
        if not any(fnmatch(path.name, pattern) for pattern in TEXTS):
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        if redact(text) != text or (token and token in text):
            problems.append(Problem("token", f"{path.name} holds a token of the Hub; take it out, and revoke it"))
        if any(fnmatch(path.name, pattern) for pattern in CONFIGURATIONS) and (found := find_path(path, text)):
            problems.append(Problem("absolute path", f"{path.name} holds {found}, which is of this machine"))
    return problems


def find_path(path: Path, text: str) -> str | None:
    """A path of this machine in a text, or as a whole value of a JSON file."""
    if match := LOCAL_PATH.search(text):
        return match[0]
    if path.suffix != ".json":
        return None
    try:
        return next((value for value in _list_strings(json.loads(text)) if _is_here(Path(value))), None)
    except ValueError:
        return None  # loading it will say so


def _is_here(path: Path) -> bool:
    """Whether it starts in a folder of this machine; labels such as /m/01g317 do not."""
    return path.is_absolute() and len(path.parts) > 2 and Path(*path.parts[:2]).is_dir()


def _list_strings(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _list_strings(item)


def check_weights(path: Path, dtype: str) -> list[Problem]:
    """One safetensors file: whole, of the type that was saved, and all numbers.

    Args:
        path: of the file.
        dtype: that its floating-point tensors should have, such as bfloat16; trained ones are float32 in any case.
    """
    import torch
    from safetensors import SafetensorError, safe_open

    try:
        header = read_header(path)
        found = {DTYPES[entry["dtype"]] for entry in header.values() if entry["dtype"] in DTYPES}
        with safe_open(path, "pt") as file:
            bad = [
                name
                for name in file.keys()  # noqa: SIM118 - no mapping
                if (tensor := file.get_tensor(name)).is_floating_point() and not torch.isfinite(tensor).all()
            ]
    except (SafetensorError, ValueError, KeyError, struct.error) as error:
        return [Problem("weights unreadable", f"{path.name} is no whole safetensors file: {error}")]
    problems = [Problem("NaN weights", f"{path.name}: {bad[0]} and {len(bad) - 1} more")] if bad else []
    if other := ", ".join(sorted(found - {dtype, "float32"})):
        problems.append(Problem("dtype", f"{path.name} holds {other}, but the run saved {dtype}"))
    return problems


def read_header(path: Path) -> dict[str, dict[str, Any]]:
    """Tensor name -> dtype, shape and place, from the start of a safetensors file."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > path.stat().st_size:
            raise ValueError(f"its header would be {length:,} bytes long")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return header
