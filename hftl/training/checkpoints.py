"""Which checkpoints of a run count? Those whose manifest was written last, durably, and whose files still match it.

A checkpoint is written into a staging folder and renamed when everything in it, the manifest last, is on disk. After
a kill at any moment there is the whole checkpoint or a staging folder, which the next run removes. The files are those
of transformers' Trainer, which reads the folder as one of its own. This module must not know what is in them.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hftl.errors import UserError
from hftl.runtime.files import write_atomically

MANIFEST_FILE = "manifest.json"
SCHEMA = 1  # raise it when a field changes its meaning
STAGING = "_tmp-"  # not `checkpoint-N.tmp`: transformers counts every `checkpoint-*` when it deletes old ones
SUPERSEDED = "superseded-"
NAME = re.compile(r"checkpoint-(\d+)")
CHUNK = 2**20


def staging_folder(folder: Path, step: int) -> Path:
    """Where the checkpoint of that step is written, the same in every process."""
    return folder / f"{STAGING}checkpoint-{step}"


def clean(folder: Path) -> None:
    """Remove what a killed run was writing or deleting."""
    for path in folder.glob(f"{STAGING}*"):
        shutil.rmtree(path, ignore_errors=True)


def commit(staging: Path, target: Path, content: Mapping[str, Any]) -> None:
    """Make a written checkpoint count: everything to disk, the manifest last, then the name.

    Args:
        staging: holds the files, written by whatever process.
        target: `checkpoint-STEP`; what is there already is replaced.
        content: what the manifest says besides the files.
    """
    files = {}
    for path in _list_files(staging):
        files[path.relative_to(staging).as_posix()] = {"bytes": path.stat().st_size, "sha256": _digest(path)}
        sync(path)
    manifest = {"schema": SCHEMA, **content, "files": files}
    manifest["sha256"] = _digest_manifest(manifest)
    write_atomically(staging / MANIFEST_FILE, json.dumps(manifest, indent=1).encode())
    for directory in {path.parent for path in _list_files(staging)} | {staging}:
        sync(directory)
    if target.exists():
        _move_aside(target)
    os.rename(staging, target)
    sync(target.parent)
    clean(target.parent)


def read_manifest(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint says about itself; empty for one without a manifest, which another program wrote."""
    try:
        content = json.loads((checkpoint / MANIFEST_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def find_damage(checkpoint: Path) -> str | None:
    """Why a checkpoint does not count, or None. Every byte of it is read."""
    if checkpoint.is_symlink():
        return "it is a link to another place"
    if not checkpoint.is_dir():
        return "it is no folder"
    if not (checkpoint / MANIFEST_FILE).exists():
        return "it has no manifest: its save was cut short, or another program wrote it"
    manifest = read_manifest(checkpoint)
    if manifest.get("sha256") != _digest_manifest(manifest):
        return f"its {MANIFEST_FILE} cannot be read, or was changed"
    if manifest["schema"] != SCHEMA:
        return f"its {MANIFEST_FILE} is of version {manifest['schema']}, and this is for version {SCHEMA}"
    if (match := NAME.fullmatch(checkpoint.name)) and manifest.get("step") != int(match[1]):
        return f"it is that of step {manifest.get('step')}"
    try:
        return _compare_files(checkpoint, manifest["files"])
    except OSError as error:
        return f"it cannot be read: {error}"


def list_checkpoints(folder: Path) -> list[Path]:
    """Everything with the name of a checkpoint, by step, the newest last; never by time, which may jump."""
    found = {int(match[1]): path for path in folder.glob("checkpoint-*") if (match := NAME.fullmatch(path.name))}
    return [found[step] for step in sorted(found)]


def find_newest(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that counts, and a sentence for each newer one that was passed over."""
    passed_over = []
    for path in reversed(list_checkpoints(folder)):
        damage = find_damage(path)
        if damage is None:
            return path, passed_over
        passed_over.append(f"{path} does not count: {damage}.")
    return None, passed_over


def supersede_later(folder: Path, step: int) -> list[str]:
    """Rename the checkpoints after `step`: a run that goes on from there makes others, which must not mix with them.

    Returns:
        The new names.
    """
    later = [path for path in list_checkpoints(folder) if int(path.name.partition("-")[2]) > step]
    for path in later:
        target = path.with_name(f"{SUPERSEDED}{path.name}")
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        os.replace(path, target)
    return [f"{SUPERSEDED}{path.name}" for path in later]


def rotate(folder: Path, limit: int | None, best_step: int | None) -> None:
    """Delete the oldest checkpoints, by step, until `limit` are left; never the newest nor the best."""
    present = list_checkpoints(folder)
    kept = {present[-1].name, f"checkpoint-{best_step}"} if present else set()
    removable = [path for path in present if path.name not in kept]
    surplus = len(present) - limit if limit else 0
    for path in removable[: max(0, surplus)]:
        _move_aside(path)
    clean(folder)


def check_checkpoint_folder(checkpoint: Path) -> None:
    """Refuse a checkpoint that was named and does not count."""
    if damage := find_damage(checkpoint):
        raise UserError(
            f"{checkpoint} does not count as a checkpoint: {damage}. Give another one, or --allow_change true to go "
            "on from it nevertheless; for its weights alone give it as --model_name_or_path."
        )


def _compare_files(checkpoint: Path, files: Mapping[str, Mapping[str, Any]]) -> str | None:
    present = {path.relative_to(checkpoint).as_posix() for path in _list_files(checkpoint)} - {MANIFEST_FILE}
    if missing := sorted(files.keys() - present):
        return f"{missing[0]} is missing"
    if extra := sorted(name for name in present - files.keys() if not name.startswith(".")):
        return f"{extra[0]} is not one of its files"
    for name, expected in files.items():
        path = checkpoint / name
        if path.is_symlink():
            return f"{name} is a link to another place"
        if (size := path.stat().st_size) != expected["bytes"]:
            return f"{name} has {size:,} bytes instead of {expected['bytes']:,}"
    changed = (name for name, expected in files.items() if _digest(checkpoint / name) != expected["sha256"])
    return next((f"{name} has changed since it was written" for name in changed), None)


def _list_files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_symlink() or path.is_file())


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _digest_manifest(manifest: Mapping[str, Any]) -> str:
    content = {name: value for name, value in manifest.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _move_aside(path: Path) -> None:
    """Take a checkpoint's name away before its files go, so that half of one never has it."""
    target = path.with_name(f"{STAGING}old-{path.name}")
    if target.exists():
        shutil.rmtree(target)
    os.rename(path, target)
