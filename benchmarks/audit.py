"""What the audit costs, what it finds of planted duplicates, and how often it is wrong on the bundled data.

    python -m benchmarks.audit           # about 10 minutes on two cores; writes benchmarks/results/audit.json
    python -m benchmarks.audit texts     # half of it; or: images

- Seconds for 100,000 glosses of WordNet, for 100,000 texts of 20 glosses, for 100,000 images of 28 px (blends of two
  of Fashion-MNIST, so that all are new) and for 20,000 JPEGs of 224 px (crops of the two photographs in scikit-learn).
  Beside them datasketch and imagehash, where they are installed, on 10,000 and 1,000 rows.
- Recall: 1,000 rows of each kind are copied into test, edited: texts lightly (text_edits.py), each edit for each
  length, and beside it with a word replaced by one of another text; JPEG of quality 60, 5 % smaller or larger.
- Alarms: rows of the bundled data in a group of near duplicates. How many of those are wrong is for eyes:
  docs/data-audit.md says what was seen.
"""

import importlib.util
import io
import json
import random
import sys
import time
import unittest.mock
from collections.abc import Callable
from datetime import date
from pathlib import Path

import datasets
import numpy as np
import sklearn.datasets
from PIL import Image

from benchmarks.text_edits import LIGHT, replace_words
from hftl import assets
from hftl.config import parse_args
from hftl.data.audit import audit
from hftl.data.inputs import look_at
from hftl.data.labels import REGRESSION, LabelInfo
from hftl.data.similarity import group_images, group_texts, list_words
from hftl.run_record import describe_environment
from hftl.tasks import build_task
from hftl.training_data import load_examples

RESULT = Path(__file__).parent / "results" / "audit.json"
INFO = LabelInfo(REGRESSION, ("value",))  # labels play no part here
PLANTED = 1000
BANDS = ((2, 4), (5, 9), (10, 14), (15, 19), (20, 1000))


def read(name: str, column: str) -> list:
    files = assets.resolve_dataset(f"bundled:{name}")
    rows = datasets.concatenate_datasets([datasets.Dataset.from_parquet(path) for path in files.values()])
    if column == "image":
        rows = rows.cast_column("image", datasets.Image(decode=False))
        return [image["bytes"] for image in rows["image"]]
    return rows[column][:]


def as_rows(texts: list[str] | None = None, images: list[bytes] | None = None) -> datasets.Dataset:
    values = texts if images is None else [{"bytes": data, "path": None} for data in images]
    name, feature = ("text", datasets.Value("string")) if images is None else ("image", datasets.Image())
    features = datasets.Features(
        {"row_id": datasets.Value("int64"), name: feature, "label": datasets.Value("float32")}
    )
    columns = {"row_id": range(len(values)), name: values, "label": [0.0] * len(values)}
    return datasets.Dataset.from_dict(columns, features=features)


def time_audit(modality: str, **values: list) -> dict[str, float]:
    rows = as_rows(**values)
    start = time.perf_counter()
    start_cpu = time.process_time()
    audit(datasets.DatasetDict(train=rows), INFO, modality, is_thorough=True)
    spent = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - start_cpu}
    return {"num_rows": len(rows)} | {name: round(value, 1) for name, value in spent.items()}


def time_run(**flags: int) -> dict[str, float]:
    """What the audit of a run on bundled:wordnet takes, of all that loading the rows takes."""
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    args = parse_args(["--dataset", "bundled:wordnet", "--mode", "full", "--output_dir", "unused", *words])
    spent = []

    def timed(*args: object, **options: object) -> object:
        start = time.perf_counter()
        found = audit(*args, **options)
        spent.append(time.perf_counter() - start)
        return found

    start = time.perf_counter()
    with unittest.mock.patch("hftl.training_data.audit", timed):
        examples = load_examples(args.data, build_task(args.data.task), 0)
    total = time.perf_counter() - start
    num_rows = sum(map(len, examples.splits.values()))
    return {"num_rows": num_rows, "audit_seconds": round(sum(spent), 1), "loading_seconds": round(total, 1)}


def count_found(train: list, copies: list, modality: str) -> float:
    """Share of the copies that are in a group with a row of train; equal ones count as well."""
    name = "images" if modality == "image" else "texts"
    splits = datasets.DatasetDict(train=as_rows(**{name: train}), test=as_rows(**{name: copies}))
    findings = audit(splits, INFO, modality, is_thorough=True)[1].findings
    return sum(f.counts.get("test", 0) for f in findings if f.kind.endswith("across_splits")) / len(copies)


def measure_texts(texts: list[str]) -> dict[str, float]:
    """Copies over all lengths: equal, with one light edit, with words replaced."""
    draw = random.Random(0)
    originals = draw.sample([text for text in texts if len(text.split()) > 1], PLANTED)
    light = [draw.choice([*LIGHT.values()])(text, draw) for text in originals]
    at_rate = [replace_words(t, sum(draw.random() < 0.05 for _ in t.split()), texts, draw) for t in originals]
    copies = {"equal": originals, "one light edit": light, "each word replaced with probability 1/20": at_rate}
    return {edit: count_found(texts, values, "text") for edit, values in copies.items()}


def measure_edits(texts: list[str]) -> dict[str, dict[str, float]]:
    """Share of copies found, by what was done to them and by the number of their words."""
    draw = random.Random(0)
    edits = LIGHT | {
        "one word in twenty, at least one, replaced": lambda text, draw: replace_words(
            text, max(1, len(text.split()) // 20), texts, draw
        )
    }
    bands = [
        [text for text in texts if low <= len(list_words([text])) <= high and len(text.split()) > 1]
        for low, high in BANDS
    ]
    names = [f"{low} to {high}" for low, high in BANDS]
    found = {}
    for name, edit in edits.items():
        copies = [edit(text, draw) for band in bands for text in draw.sample(band, PLANTED)]
        groups = group_texts([[text] for text in texts + copies])
        is_found = np.isin(groups[len(texts) :], groups[: len(texts)]).reshape(len(BANDS), PLANTED)
        found[name] = dict(zip(names, is_found.mean(axis=1).tolist(), strict=True))
    return found


def recode(data: bytes, scale: float) -> bytes:
    image, buffer = Image.open(io.BytesIO(data)).convert("RGB"), io.BytesIO()
    size = [round(side * scale) for side in image.size]
    image.resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=60)
    return buffer.getvalue()


def measure_images(images: list[bytes]) -> dict[str, float]:
    originals = random.Random(0).sample(images, PLANTED)
    recoded = [recode(data, 0.95 if index % 2 else 1.05) for index, data in enumerate(originals)]
    twice = [recode(recode(data, 0.95), 1.05) for data in originals]
    return {
        "equal": count_found(images, originals, "image"),
        "JPEG quality 60, 5 % smaller or larger": count_found(images, recoded, "image"),
        "that twice": count_found(images, twice, "image"),
    }


def count_alarms(rows: datasets.Dataset, modality: str, group: Callable) -> dict[str, float]:
    """Rows of one data set in groups of near duplicates; of equal rows one is taken."""
    looks = list({look.digest: look for look in look_at(rows, "", modality)}.values())
    values = np.stack([look.signature for look in looks]) if modality == "image" else [look.texts for look in looks]
    sizes = np.bincount(group(values))
    flagged = int(sizes[sizes > 1].sum())
    return {"distinct_rows": len(looks), "flagged_rows": flagged, "share": flagged / len(looks)}


def blend(images: list[bytes], count: int) -> list[bytes]:
    draw = np.random.default_rng(0)
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(data)), dtype=np.float32) for data in images])
    blended = []
    for _ in range(count):
        (a, b), weight, buffer = draw.integers(len(pixels), size=2), draw.uniform(0.3, 0.7), io.BytesIO()
        Image.fromarray((pixels[a] * weight + pixels[b] * (1 - weight)).astype(np.uint8)).save(buffer, "PNG")
        blended.append(buffer.getvalue())
    return blended


def crop_photographs(count: int, size: int = 224) -> list[bytes]:
    draw, crops = np.random.default_rng(0), []
    photographs = [Image.fromarray(image) for image in sklearn.datasets.load_sample_images().images]
    for _ in range(count):
        image, buffer = photographs[draw.integers(len(photographs))], io.BytesIO()
        side = int(draw.integers(60, 427))
        left, top = (int(draw.integers(0, space - side + 1)) for space in image.size)
        image.crop((left, top, left + side, top + side)).resize((size, size)).save(buffer, "JPEG", quality=90)
        crops.append(buffer.getvalue())
    return crops


def time_text_library(texts: list[str]) -> dict[str, dict[str, float]]:
    """The usual library on the same rows, where it is installed."""
    if not importlib.util.find_spec("datasketch"):
        return {}
    import datasketch

    words = [[word.encode() for word in set(list_words([text]))] for text in texts[:10_000]]
    start = time.perf_counter()
    hashes = datasketch.MinHash.bulk(words, num_perm=128)
    index = datasketch.MinHashLSH(threshold=0.8, num_perm=128)
    for number, value in enumerate(hashes):
        index.insert(number, value)
        index.query(value)
    theirs = round(time.perf_counter() - start, 2)
    start = time.perf_counter()
    group_texts([[text] for text in texts[:10_000]])
    ours = round(time.perf_counter() - start, 2)
    return {
        name: {"num_rows": len(words), "seconds": s} for name, s in (("datasketch", theirs), ("group_texts", ours))
    }


def time_image_library(images: list[bytes]) -> dict[str, dict[str, float]]:
    if not importlib.util.find_spec("imagehash"):
        return {}
    import imagehash

    start = time.perf_counter()
    for data in images[:1000]:
        imagehash.phash(Image.open(io.BytesIO(data)))
    theirs = round(time.perf_counter() - start, 2)
    start = time.perf_counter()
    look_at(as_rows(images=images[:1000]), "", "image")
    ours = round(time.perf_counter() - start, 2)
    sides = {"imagehash.phash": theirs, "look_at": ours}
    return {name: {"num_rows": 1000, "seconds": seconds} for name, seconds in sides.items()}


def measure_all_texts() -> dict[str, dict]:
    glosses, draw = read("wordnet", "text"), random.Random(1)
    long_texts = [" ".join(draw.sample(glosses, 20)) for _ in range(100_000)]
    files = assets.resolve_dataset("bundled:wordnet-definitions").values()
    definitions = datasets.concatenate_datasets([datasets.Dataset.from_parquet(path) for path in files])
    return {
        "seconds": {
            "glosses": time_audit("text", texts=glosses[:100_000]),
            "texts of 20 glosses": time_audit("text", texts=long_texts),
        },
        "runs on bundled:wordnet": {
            "1,000 train rows": time_run(num_train_examples=1000, num_validation_examples=1000),
            "all rows": time_run(),
        },
        "libraries": time_text_library(glosses),
        "recall": {"bundled:wordnet": measure_texts(glosses)},
        "edits": measure_edits(glosses),
        "alarms": {
            "bundled:wordnet": count_alarms(as_rows(texts=glosses), "text", group_texts),
            "bundled:wordnet-definitions": count_alarms(definitions, "language", group_texts),
        },
    }


def measure_all_images() -> dict[str, dict]:
    clothes, photographs = read("fashion-mnist", "image"), crop_photographs(20_000)
    return {
        "seconds": {
            "images of 28 px": time_audit("image", images=blend(clothes, 100_000)),
            "JPEGs of 224 px": time_audit("image", images=photographs),
            "bundled:fashion-mnist": time_audit("image", images=clothes),
        },
        "libraries": time_image_library(clothes),
        "recall": {
            "bundled:fashion-mnist": measure_images(clothes),
            "JPEGs of 224 px": measure_images(photographs[:5000]),
        },
        "alarms": {"bundled:fashion-mnist": count_alarms(as_rows(images=clothes), "image", group_images)},
    }


def main() -> None:
    datasets.disable_progress_bars()
    parts = {"texts": measure_all_texts, "images": measure_all_images}
    result = json.loads(RESULT.read_text())
    for part in sys.argv[1:] or parts:
        environment = describe_environment()
        for section, values in parts[part]().items():
            result[section] = {**result.get(section, {}), **values}
        result["measured"][part] = {"date": date.today().isoformat(), "environment": environment}
        RESULT.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
