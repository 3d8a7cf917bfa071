"""What does a folder hold that `save_to_disk` wrote? Its splits, and of files only those inside of it."""

import json
from pathlib import Path

import datasets

from hftl.errors import UserError


def read_saved(folder: Path) -> dict[str, datasets.Dataset]:
    _check_inside(folder)
    try:
        saved = datasets.load_from_disk(str(folder))
    # IndexError: `datasets` 5.2 writes a split without rows but cannot read it.
    except (datasets.exceptions.DatasetsError, ValueError, OSError, KeyError, IndexError) as error:
        raise UserError(f"Cannot read {folder} ({error}): a file is damaged or a split has no rows.") from error
    return dict(saved) if isinstance(saved, datasets.DatasetDict) else {"train": saved}


def _check_inside(folder: Path) -> None:
    """The library opens any file that a `state.json` names; those of a sound folder lie beside it.

    Raises:
        UserError: one does not, or the file is damaged.
    """
    for state in [folder / "state.json", *folder.glob("*/state.json")]:
        try:
            entries = json.loads(state.read_text("utf-8"))["_data_files"] if state.is_file() else []
            names = [entry["filename"] for entry in entries]
            strange = [name for name in names if Path(name).name != name]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"Cannot read {state} ({error}): the file is damaged.") from error
        if strange:
            raise UserError(f"{state} names {strange[0]!r}, which is not beside it. Write the data set anew.")
