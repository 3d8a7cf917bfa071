"""Are the rows usable? Finds empty texts, unreadable images and inputs that train shares with validation or test.

Bad rows are an error or are dropped, as the user says. This module must not change a row or look at the model.
"""

import hashlib
import io
import logging
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import datasets
from PIL import Image
from tqdm.auto import tqdm

from hftl.data.labels import SINGLE, LabelInfo
from hftl.errors import UserError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AuditReport:
    """Counts by split, for `run.json`."""

    num_rows: dict[str, int]  # after bad rows were dropped
    bad_rows: dict[str, dict[str, int]]  # split -> kind -> rows dropped
    num_duplicates: dict[str, int]  # validation and test rows whose input is in train as well
    label_counts: dict[str, dict[str, int]]  # split -> class -> rows; empty unless rows have one class each

    def as_dict(self) -> dict[str, dict]:
        return asdict(self)


@dataclass(frozen=True)
class _Finding:
    """What a look at one row gave: why it is bad or None, a digest of the input, the file or None."""

    kind: str | None
    digest: bytes = b""
    path: str | None = None


def audit(
    splits: datasets.DatasetDict, info: LabelInfo, modality: str, on_bad_rows: str = "error"
) -> tuple[datasets.DatasetDict, AuditReport]:
    """Looks at every input once and drops or reports the bad ones.

    Args:
        splits: canonical columns with encoded labels.
        modality: text or image.
        on_bad_rows: `error` or `skip`.

    Raises:
        UserError: bad rows and `on_bad_rows` is `error`, with up to five row ids of each kind and split; or a split,
            or a class in train, of which nothing would be left.
    """
    inspect = _inspect_images if modality == "image" else _inspect_texts
    findings = {split: list(inspect(rows, split)) for split, rows in splits.items()}
    bad = {split: _group_by_kind(found) for split, found in findings.items()}
    if any(bad.values()) and on_bad_rows == "error":
        raise UserError(_describe_bad_rows(splits, findings, bad))
    kept = datasets.DatasetDict(
        {split: _drop_bad_rows(rows, split, findings[split], bad[split]) for split, rows in splits.items()}
    )
    counts = {split: _count_labels(rows, info) for split, rows in kept.items()}
    if lost := sorted(set(_count_labels(splits["train"], info)) - set(counts["train"])):
        raise UserError(f"Without its bad rows, train has nothing of class {', '.join(lost)}; repair some of them.")
    report = AuditReport(
        num_rows={split: len(rows) for split, rows in kept.items()},
        bad_rows={split: {kind: len(rows) for kind, rows in kinds.items()} for split, kinds in bad.items()},
        num_duplicates=_count_duplicates(findings),
        label_counts=counts,
    )
    return kept, report


def _inspect_texts(rows: datasets.Dataset, split: str) -> Iterator[_Finding]:
    for texts, fault in list_texts(rows):
        # An input counts as a duplicate whatever its case and white space.
        words = [text.casefold().split() for text in texts]
        digest = hashlib.sha256("\0".join(map(" ".join, words)).encode("utf-8", "replace")).digest()
        yield _Finding(fault, digest)


def list_texts(rows: datasets.Dataset) -> Iterator[tuple[list[str], str | None]]:
    """The texts of each row, and what is wrong with them. A prompt may be empty, what is to be learnt may not."""
    if "messages" in rows.column_names:
        for messages in rows["messages"]:
            answers = [m for m in messages or [] if m["role"] == "assistant" and (m["content"] or "").strip()]
            texts = [m["content"] or "" for m in messages or []]
            yield texts, None if answers else "chat without an answer of the assistant"
    elif "completion" in rows.column_names:
        for prompt, completion in zip(rows["prompt"], rows["completion"], strict=True):
            yield [prompt or "", completion or ""], None if (completion or "").strip() else "empty completion"
    else:
        names = [name for name in ("text", "text_pair") if name in rows.column_names]
        for texts in zip(*(rows[name] for name in names), strict=True):
            found = [text or "" for text in texts]
            yield found, None if all(text.split() for text in found) else "empty text"


def _inspect_images(rows: datasets.Dataset, split: str) -> Iterator[_Finding]:
    images = rows.select_columns("image").cast_column("image", datasets.Image(decode=False))
    Image.preinit()  # threads would race to register Pillow's plugins
    with ThreadPoolExecutor() as pool:
        for start in tqdm(range(0, len(images), 256), desc=f"checking {split} images", disable=None):
            yield from pool.map(_inspect_image, images[start : start + 256]["image"])


def _inspect_image(image: dict | None) -> _Finding:
    path, data = (image["path"], image["bytes"]) if image else (None, None)
    if data is None and path is None:
        return _Finding("no image")
    try:
        data = Path(path).read_bytes() if data is None else data
    except OSError as error:
        kind = "missing file" if isinstance(error, FileNotFoundError) else "unreadable file"
        return _Finding(kind, path=path)
    return _Finding(_find_image_fault(data), hashlib.sha256(data).digest(), path)


def _find_image_fault(data: bytes) -> str | None:
    """Decodes an image to the end; `Image.verify` does not see that a JPEG is cut off."""
    if not data:
        return "empty image file"
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.draft(None, (1, 1))  # a JPEG is read to its end and scaled down on the way: half the time
            image.load()
            image.getexif()  # `datasets` reads it to turn the image upright
    except Image.DecompressionBombError:
        return "image with too many pixels"
    except (
        Exception
    ):  # each format of Pillow fails in its own way: OSError, SyntaxError, ValueError, struct.error, ...
        return "corrupt image"
    return None


def _group_by_kind(findings: list[_Finding]) -> dict[str, list[int]]:
    """Kind -> indices of the bad rows."""
    kinds = defaultdict(list)
    for index, finding in enumerate(findings):
        if finding.kind:
            kinds[finding.kind].append(index)
    return dict(kinds)


def _describe_bad_rows(
    splits: datasets.DatasetDict, findings: dict[str, list[_Finding]], bad: dict[str, dict[str, list[int]]]
) -> str:
    lines = []
    for split, kinds in bad.items():
        for kind, indices in kinds.items():
            ids = splits[split].select(indices[:5])["row_id"][:]
            paths = [findings[split][index].path for index in indices[:5]]
            named = [f"{row_id} {path}" if path else str(row_id) for row_id, path in zip(ids, paths, strict=True)]
            more = ", ..." if len(indices) > 5 else ""
            lines.append(f"{split}: {len(indices)} x {kind} (row_id {', '.join(named)}{more})")
    return "Some rows cannot be used. " + "; ".join(lines) + ". Repair them, or drop them with `--on_bad_rows skip`."


def _drop_bad_rows(
    rows: datasets.Dataset, split: str, findings: list[_Finding], bad: dict[str, list[int]]
) -> datasets.Dataset:
    if not bad:
        return rows
    good = [index for index, finding in enumerate(findings) if finding.kind is None]
    found = ", ".join(f"{len(indices)} x {kind}" for kind, indices in bad.items())
    if not good:
        raise UserError(f"No row of {split} can be used ({found}); repair the data.")
    logger.warning("Dropped %d of %d rows of %s: %s.", len(rows) - len(good), len(rows), split, found)
    return rows.select(good)


def _count_duplicates(findings: dict[str, list[_Finding]]) -> dict[str, int]:
    train = {finding.digest for finding in findings["train"] if finding.kind is None}
    counts = {}
    for split in findings.keys() - {"train"}:
        counts[split] = sum(finding.kind is None and finding.digest in train for finding in findings[split])
        if counts[split]:
            logger.warning(
                "%d of the %d inputs of %s are in train as well; its scores will be too good.",
                counts[split],
                len(findings[split]),
                split,
            )
    return counts


def _count_labels(rows: datasets.Dataset, info: LabelInfo) -> dict[str, int]:
    if info.problem_type != SINGLE:
        return {}
    counts = Counter(rows["label"][:])
    return {name: counts[index] for index, name in enumerate(info.names) if counts[index]}
