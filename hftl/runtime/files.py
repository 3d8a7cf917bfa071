"""How are files written so that they are whole or not there, without tokens, and told apart by content?"""

import hashlib
import json
import math
import numbers
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Tokens of users, applications (OAuth) and jobs (JWT) and of organizations; the name and password of an address.
TOKEN = re.compile(r"(hf_)[A-Za-z0-9]{20,}|((?:hf_(?:oauth|jwt)|api_org)_)(?=[\w.-]{16})[\w-]+(?:\.[\w-]+)*")
PASSWORD = re.compile(r"(?<=://)[^\s/@:\"'<>]+:[^\s/@\"'<>]+(?=@)")


def write_json(path: Path, content: Mapping[str, Any]) -> Path:
    """Write a JSON file whole, without tokens of the Hub; what is not finite becomes null."""
    text = json.dumps(to_json(content), indent=2, ensure_ascii=False, allow_nan=False)
    return write_atomically(path, (redact(text) + "\n").encode())


def redact(text: str) -> str:
    """Take out tokens of the Hub and passwords in addresses, which error texts and configurations may quote."""
    return PASSWORD.sub("[redacted]", redact_tokens(text))


def redact_tokens(text: str) -> str:
    """Take out tokens of the Hub: all by their form, and those of the environment by value."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if len(value := os.environ.get(name, "").strip()) >= 8:  # a shorter one is no token, and may be part of words
            text = text.replace(value, "hf_[redacted]")
    return TOKEN.sub(lambda match: f"{match[1] or match[2]}[redacted]", text)


def write_atomically(path: Path, content: bytes) -> Path:
    """Make `path` hold `content`; after a crash at any point it holds the old or the new one, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def to_json(value: Any) -> Any:
    """Plain JSON types. NumPy scalars become numbers, and what is not finite becomes None."""
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, numbers.Integral):
        return value if isinstance(value, bool) else int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else None
    return value


def compute_sha256(path: Path) -> str:
    """The hex digest of a file, read in blocks of 1 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
