"""What of a path, an address or a free text may others see? The last part of each path, in letters that mean nothing.

A list of what may appear, and not of what may not: nobody knows how folders of other machines are called.
"""

import re
from collections.abc import Mapping
from typing import Any

ADDRESS = re.compile(r"^[A-Za-z][\w+.-]*:/+")
QUERY = re.compile(r"[?#].*$", re.DOTALL)
OTHER = re.compile(r"[^\w .+()-]+")  # what is no letter, number, or harmless sign of a file's name
QUOTED = re.compile(r"""(['"`])([^'"`\n]*[/\\][^'"`\n]*)\1""")
WORD = re.compile(r"[^\s'\"`<>()\[\]{},;|=]+")
KNOWN = re.compile(r"bundled:[\w.-]+|\d+/\d+")  # data of the package; so many of so many
SEPARATOR = re.compile(r"/+|\\+(?=\w)")  # not the backslash of a regular expression
LABELS = ("label", "labels", "label_names")  # keys of results that hold names of classes, which are published
NO_NAME = "data"


def name_of(path: str) -> str:
    """The last part of a path or an address, without anything that a page could read as markup.

    `/home/me/train.csv`, `C:\\me\\train.csv` and `s3://key:secret@bucket/train.csv?sig=1` are all `train.csv`.
    """
    if KNOWN.fullmatch(path):
        return path
    is_address = ADDRESS.match(path)
    rest = QUERY.sub("", path[is_address.end() :]) if is_address else path
    parts = [part for part in SEPARATOR.split(rest) if part.strip()]
    name = parts[-1] if parts else ""
    if name.startswith("~") or (is_address and len(parts) == 1 and not path.lower().startswith("file:")):
        return NO_NAME  # a user's folder, or a host
    name = OTHER.sub("_", " ".join(name.split())).strip(" _")
    return name if re.search(r"\w", name) and ":" not in name else NO_NAME


def shorten_paths(text: str) -> str:
    """A free text in which each word with a separator of folders is the last part of itself."""
    text = QUOTED.sub(lambda match: f"{match[1]}{name_of(match[2])}{match[1]}", text)
    return WORD.sub(lambda match: _shorten_word(match[0]), text)


def _is_path(text: str) -> bool:
    return text.startswith("~") or SEPARATOR.search(text) is not None


def _shorten_word(word: str) -> str:
    if not _is_path(word):
        return word
    end = re.search(r"[.:!?]*$", word)[0]
    return name_of(word.removesuffix(end)) + end if len(end) < len(word) else word


def name_all(value: Any, *, with_rows: bool, key: str = "") -> Any:
    """JSON content in which paths are names; errors, which may quote rows, are their kind alone.

    Args:
        value: the content.
        with_rows: whether what an error quotes may be seen.
        key: under which the content stands.
    """
    if isinstance(value, Mapping):
        return {shorten_paths(str(k)): name_all(item, with_rows=with_rows, key=str(k)) for k, item in value.items()}
    if isinstance(value, list | tuple):
        return [name_all(item, with_rows=with_rows, key=key) for item in value]
    if not isinstance(value, str) or key in LABELS:
        return value
    if key == "error" and not with_rows:
        return _name_kind(value)
    is_one = key in ("data", "checkpoint", "folder") or key.endswith(("_file", "_dir", "_path", "dataset"))
    if is_one and _is_path(value):
        return ", ".join(map(name_of, value.split(", ")))
    return shorten_paths(value)


def _name_kind(error: str) -> str:
    """The class of an exception: what follows may quote a row."""
    kind = error.partition(":")[0].strip()
    return kind if kind.isidentifier() else "failed"
