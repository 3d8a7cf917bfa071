"""What does a folder hold that `save_to_disk` wrote? Its splits, and of files only those inside of it.

The library opens whatever the JSON files of such a folder name, and follows links; those of a sound folder lie in it.
"""

import json
from pathlib import Path
from typing import Any

import datasets

from hftl.data.paths import check_regular, keep_inside
from hftl.errors import UserError

LISTED = "dataset_dict.json"
STATE = "state.json"
INFO = "dataset_info.json"


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` wrote this folder."""
    return (folder / LISTED).is_file() or (folder / STATE).is_file()


def read_saved(folder: Path) -> dict[str, datasets.Dataset]:
    """The splits; a data set without any is train.

    Raises:
        UserError: a file is damaged, or something leads out of the folder.
    """
    _check_files(folder)
    try:
        saved = datasets.load_from_disk(str(folder))
    # IndexError: `datasets` 5.2 writes a split without rows but cannot read it.
    except (datasets.exceptions.DatasetsError, ValueError, OSError, KeyError, IndexError) as error:
        raise UserError(f"Cannot read {folder} ({error}): a file is damaged or a split has no rows.") from error
    splits = dict(saved) if isinstance(saved, datasets.DatasetDict) else {"train": saved}
    for rows in splits.values():
        keep_inside(rows, [folder], str(folder))
    return splits


def _check_files(folder: Path) -> None:
    """Every file that the library would open lies in the folder, and is one."""
    listed = _check_file(folder / LISTED, folder)
    names = _read(listed, "splits") if listed.is_file() else [""]
    for name in _check_names(names, listed):
        state = _check_file(folder / name / STATE, folder)
        _check_file(folder / name / INFO, folder)
        entries = _read(state, "_data_files") if state.is_file() else []
        files = [entry.get("filename") if isinstance(entry, dict) else None for entry in entries]
        for file in _check_names(files, state):
            _check_file(folder / name / file, folder)


def _read(file: Path, key: str) -> list[Any]:
    try:
        found = json.loads(file.read_text("utf-8"))[key]
        if not isinstance(found, list):
            raise TypeError(f"{key} is no list")
        return found
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"Cannot read {file} ({error}): the file is damaged.") from error


def _check_names(names: list[Any], file: Path) -> list[str]:
    for name in names:
        if not isinstance(name, str):
            raise UserError(f"Cannot read {file}: {name!r} is no name, so the file is damaged.")
        if name and (name in (".", "..") or "/" in name or "\\" in name or ":" in name):
            raise UserError(f"{file} names {name!r}, which is not beside it. Write the data set anew.")
    return names


def _check_file(path: Path, folder: Path) -> Path:
    check_regular(path)
    if path.exists() and not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{path} is a link that leads out of {folder}. Put the file itself there.")
    return path
