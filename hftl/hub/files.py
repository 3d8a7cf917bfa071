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

from hftl.records import CANARY_FILE, redact_tokens

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
CONFIGURATIONS = ("*config.json", "*_map.json", "*.jinja")  # where a path can only be a mistake
TEXTS = ("*.json", "*.txt", "*.jinja", "*.md", "*.yaml", "*.yml", ".env*", "*.html", "*.csv", "*.log")
# Keys of configurations whose texts are no paths: labels, tokens, templates, names of modules.
WORDS = (
    *("id2label", "label2id", "chat_template", "content", "*_token", "*_tokens", "stop_strings", "target_modules"),
    *("exclude_modules", "modules_to_save", "layers_pattern", "rank_pattern", "alpha_pattern", "prefix"),
)
# In a text: what begins like a path of any machine, or is an address that is not of the web.
LOCAL_PATH = re.compile(
    r"(?<![\w./:<~{}\[\]|-])(?:~[\w.-]*/|/(?=[\w.~-]+/)|[A-Za-z]:\\+(?=\w)|\\\\+\w[\w.$-]*\\+)[^\s\"'<>|)]+"
    r"|\b(?!https?:)[A-Za-z][\w+.-]+://[^\s\"'<>|)]+"
)
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
WEB = re.compile(r"https?://[^\s@?]+")
MARK = re.compile(r"[<\[{|].*", re.DOTALL)  # tokens such as </s> and [/INST]
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
        if redact_tokens(text) != text or (token and token in text):
            problems.append(Problem("token", f"{path.name} holds a token of the Hub; take it out, and revoke it"))
        if any(fnmatch(path.name, pattern) for pattern in CONFIGURATIONS) and (found := find_path(path, text)):
            problems.append(Problem("absolute path", f"{path.name} holds {found}, which is of this machine"))
    return problems


def find_path(path: Path, text: str) -> str | None:
    """What a configuration holds that may be a path: whatever has parts and is no id of the Hub, token or label."""
    if path.suffix != ".json":
        match = LOCAL_PATH.search(text)
        return match[0] if match else None
    try:
        found = [_read_path(key, value) for key, value in _list_strings(json.loads(text))]
    except ValueError:
        return None  # loading it will say so
    return next(filter(None, found), None)


def _read_path(key: str, value: str) -> str | None:
    """`value`, if it has parts and may not have any at this key."""
    if any(fnmatch(key, pattern) for pattern in WORDS):
        match = LOCAL_PATH.search(value) if key == "chat_template" else None
        return match[0] if match else None
    if not re.search(r"[/\\]|^~|^[A-Za-z]:$", value) or WEB.fullmatch(value) or MARK.fullmatch(value):
        return None
    is_id = HUB_ID.fullmatch(value.partition("--")[0]) and not Path(value).exists()
    return None if is_id else value


def _list_strings(value: Any, key: str = "") -> Iterable[tuple[str, str]]:
    """Key and text of every text of a JSON file; what lies under labels and tokens has their key."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _list_strings(item, key if any(fnmatch(key, pattern) for pattern in WORDS) else name)
    elif isinstance(value, list):
        for item in value:
            yield from _list_strings(item, key)


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
