"""Rows of one split that cannot be used: an error that names them, or left out, as the user chose.

Must not find out why: whoever reads the rows says so.
"""

import logging
from collections.abc import Sequence

import datasets
import numpy as np

from hftl.errors import UserError


class BadRows(UserError):
    """Rows of one split that cannot be used."""


logger = logging.getLogger(__name__)

MAX_NAMED = 5  # kinds of faults, and rows of each


def leave_out(rows: datasets.Dataset, faults: Sequence[str | None], on_bad_rows: str) -> datasets.Dataset:
    """The rows without a fault.

    Args:
        rows: with `row_id`.
        faults: of each row, None for a good one.
        on_bad_rows: `error` or `skip`.

    Raises:
        BadRows: there are bad rows and they are an error, or there are no others.
    """
    bad = np.flatnonzero([fault is not None for fault in faults])
    if not len(bad):
        return rows
    found = describe_faults([faults[index] for index in bad], rows.select(bad)["row_id"][:])
    if on_bad_rows == "error":
        raise BadRows(f"Some rows cannot be used: {found}. Repair them, or drop them with --on_bad_rows skip.")
    if len(bad) == len(rows):
        raise BadRows(f"No row can be used: {found}. Repair the data.")
    logger.warning("Dropped %d of %d rows: %s.", len(bad), len(rows), found)
    return rows.select(np.setdiff1d(np.arange(len(rows)), bad))


def describe_faults(faults: Sequence[str], row_ids: Sequence[int]) -> str:
    """A few kinds of faults, the most frequent first, with a few rows of each."""
    kinds: dict[str, list[int]] = {}
    for fault, row_id in zip(faults, row_ids, strict=True):
        kinds.setdefault(fault, []).append(row_id)
    order = sorted(kinds, key=lambda fault: -len(kinds[fault]))
    parts = [f"{len(kinds[fault])} x {fault} (row_id {_list(kinds[fault])})" for fault in order[:MAX_NAMED]]
    more = len(order) - MAX_NAMED
    return "; ".join(parts) + (f"; and {more} other faults" if more > 0 else "")


def _list(row_ids: list[int]) -> str:
    return ", ".join(map(str, row_ids[:MAX_NAMED])) + (", ..." if len(row_ids) > MAX_NAMED else "")
