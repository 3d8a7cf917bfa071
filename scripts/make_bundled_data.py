"""Makes the data sets that ship inside hftl, from Debian packages: how `hftl/bundled/*/*.parquet` came to be.

    apt-get install wordnet-base dataset-fashion-mnist
    python scripts/make_bundled_data.py hftl/bundled

Nothing is drawn at random: where an order must not depend on the source's order, it is the order of sha256 sums. So
every run gives the same rows in the same order, and the same bytes under the same pyarrow. The sha256 of each file is
logged at the end; `hftl.assets.DATASETS` holds them, and `hftl/bundled/README.md` the counts.

wordnet: every gloss (the text after `|` of a line of `data.{noun,verb,adj,adv}`, definition and quoted examples), with
the synset's lexicographer file as label. Glosses are near-duplicates when their sets of lower-case words (`[a-z0-9]+`)
have a Jaccard similarity of at least 0.8, and so is a chain of such pairs; near-duplicates are kept in one split.
Validation and test have a quota for each class, in proportion to its size. Duplicates inside a split are kept.

wordnet-definitions: the first word of a synset with its part of speech as prompt, the gloss without its examples as
completion. Splits are cut out of those of `wordnet`, so near-duplicates stay in one; a word of validation or test,
whatever its sense, is in no other split. Only words of letters, so without the many names and chemical formulas.

fashion-mnist: the first 600 images of each class of the official training file are train, the next 100 are validation;
the first 200 of each class of the official test file are test. The PNGs are stored uncompressed: zstd over the whole
column then makes 389 bytes of an image, and 450 where PNG's own compression (`optimize=True`) comes first.
"""

import argparse
import functools
import gzip
import hashlib
import io
import logging
import math
import re
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Features, Image, Value
from PIL import Image as PILImage

logger = logging.getLogger("make_bundled_data")

WORDNET = Path("/usr/share/wordnet")
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")

HELD_OUT = {"test": 10_000, "validation": 5_000}  # WordNet rows, filled in this order; the rest is train
MIN_JACCARD = 0.8  # of two sets of words, for near-duplicates
NUM_DEFINITIONS = {"train": 20_000, "validation": 1_000, "test": 2_000}
PARTS = {"n": "noun", "v": "verb", "a": "adjective", "s": "adjective", "r": "adverb"}
IMAGES_PER_CLASS = {"train": 600, "validation": 100, "test": 200}

# lexnames(5WN) of WordNet 3.0, in file-number order; Debian's package does not carry the file itself.
LEXICOGRAPHER_FILES = [
    "adj.all", "adj.pert", "adv.all", "noun.Tops", "noun.act", "noun.animal", "noun.artifact", "noun.attribute",
    "noun.body", "noun.cognition", "noun.communication", "noun.event", "noun.feeling", "noun.food", "noun.group",
    "noun.location", "noun.motive", "noun.object", "noun.person", "noun.phenomenon", "noun.plant", "noun.possession",
    "noun.process", "noun.quantity", "noun.relation", "noun.shape", "noun.state", "noun.substance", "noun.time",
    "verb.body", "verb.change", "verb.cognition", "verb.communication", "verb.competition", "verb.consumption",
    "verb.contact", "verb.creation", "verb.emotion", "verb.motion", "verb.perception", "verb.possession",
    "verb.social", "verb.stative", "verb.weather", "adj.ppl",
]  # fmt: skip
# The order of https://github.com/zalandoresearch/fashion-mnist#labels
FASHION_CLASSES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"]
FASHION_CLASSES += ["Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]

WORDNET_FEATURES = Features({"text": Value("string"), "label": ClassLabel(names=LEXICOGRAPHER_FILES)})
DEFINITION_FEATURES = Features({"prompt": Value("string"), "completion": Value("string")})
FASHION_MNIST_FEATURES = Features({"image": Image(), "label": ClassLabel(names=FASHION_CLASSES)})


def main() -> None:
    """Writes the data sets into the folder named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where their folders go")
    folder = parser.parse_args().folder
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for split, columns in build_wordnet().items():
        write_parquet(columns, WORDNET_FEATURES, folder / "wordnet" / f"{split}.parquet")
    for split, columns in build_definitions().items():
        write_parquet(columns, DEFINITION_FEATURES, folder / "wordnet-definitions" / f"{split}.parquet")
    for split, columns in build_fashion_mnist().items():
        write_parquet(columns, FASHION_MNIST_FEATURES, folder / "fashion-mnist" / f"{split}.parquet")


def write_parquet(columns: dict[str, list], features: Features, path: Path) -> None:
    """Writes one split as one row group and one page a column, which compresses best, and logs what was written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns, schema=features.arrow_schema)  # the schema's metadata is what `datasets` reads back
    options = {"use_dictionary": False, "write_statistics": False, "data_page_size": 1 << 27}
    pq.write_table(table, path, row_group_size=len(table), compression="zstd", compression_level=22, **options)
    content = path.read_bytes()
    counts = Counter(columns.get("label", ["none"] * len(table)))
    logger.info("%s: %d rows, %d classes, smallest class %d", path, len(table), len(counts), min(counts.values()))
    logger.info("    %d bytes, sha256 %s", len(content), hashlib.sha256(content).hexdigest())


# ---- WordNet


def build_wordnet() -> dict[str, dict[str, list]]:
    """The glosses of WordNet 3.0 in three splits, each in database order (noun, verb, adj, adv)."""
    texts, labels, split_of = split_glosses()
    splits = {split: {"text": [], "label": []} for split in ("train", "validation", "test")}
    for text, label, split in zip(texts, labels, split_of, strict=True):
        splits[split]["text"].append(text)
        splits[split]["label"].append(label)
    return splits


@functools.cache  # the search for near-duplicates takes most of the time, and two data sets are cut out of its splits
def split_glosses() -> tuple[list[str], list[int], list[str]]:
    """Gloss, lexicographer file number and split of every synset."""
    texts, labels = read_glosses()
    return texts, labels, split_groups(find_near_duplicates(texts), texts, labels)


def read_glosses() -> tuple[list[str], list[int]]:
    """The gloss and lexicographer file number of every synset."""
    lines = read_synsets()
    return [line.partition("|")[2].strip() for line in lines], [int(line.split(maxsplit=2)[1]) for line in lines]


def read_synsets() -> list[str]:
    """A line for every synset, as wndb(5WN) describes it; lines that start with two spaces are the licence."""
    return [
        line
        for part in ("noun", "verb", "adj", "adv")
        for line in (WORDNET / f"data.{part}").read_text(encoding="ascii").splitlines()
        if not line.startswith("  ")
    ]


def build_definitions() -> dict[str, dict[str, list]]:
    """Words and their definitions, in the order of the sha256 sums of their glosses."""
    texts, _, split_of = split_glosses()
    order = sorted(range(len(texts)), key=lambda row: hashlib.sha256(texts[row].encode()).digest())
    lines, taken = read_synsets(), {}
    splits = {split: {"prompt": [], "completion": []} for split in NUM_DEFINITIONS}
    for split in ("test", "validation", "train"):
        columns = splits[split]
        for row in (row for row in order if split_of[row] == split):
            part, word = PARTS[lines[row].split()[2]], lines[row].split()[4].replace("_", " ").partition("(")[0]
            definition = re.split(r'; "', texts[row])[0].strip().rstrip(";")
            if len(columns["prompt"]) == NUM_DEFINITIONS[split] or not definition:
                continue
            if re.fullmatch("[a-z]+(?: [a-z]+)?", word) and taken.setdefault(word, split) == split:
                columns["prompt"].append(f"{word} ({part}):")
                columns["completion"].append(f" {definition}")
    return splits


def find_near_duplicates(texts: list[str]) -> list[list[int]]:
    """Groups of row indices: connected components of `Jaccard(words, words) >= MIN_JACCARD`, found exactly.

    Prefix filtering (Bayardo et al., Scaling up all pairs similarity search, WWW 2007): with words in one fixed order,
    two sets of Jaccard >= t share a word among the first `n - ceil(t * n) + 1` of each; rarest first is the fastest.
    """
    word_sets = [frozenset(re.findall(r"[a-z0-9]+", text.lower())) for text in texts]
    distinct = sorted(set(word_sets), key=lambda words: (len(words), sorted(words)))
    frequency = Counter(word for words in distinct for word in words)
    seen_with: dict[str, list[int]] = defaultdict(list)
    parent = list(range(len(distinct)))
    for i, words in enumerate(distinct):
        prefix_length = len(words) - math.ceil(MIN_JACCARD * len(words)) + 1
        prefix = sorted(words, key=lambda word: (frequency[word], word))[:prefix_length]
        for j in {j for word in prefix for j in seen_with[word]}:
            if len(words & distinct[j]) >= MIN_JACCARD * len(words | distinct[j]):
                parent[find_root(parent, i)] = find_root(parent, j)
        for word in prefix:
            seen_with[word].append(i)
    groups = defaultdict(list)
    number = {words: i for i, words in enumerate(distinct)}
    for row, words in enumerate(word_sets):
        groups[find_root(parent, number[words])].append(row)
    return list(groups.values())


def find_root(parent: list[int], i: int) -> int:
    """The representative of `i` in a union-find forest, halving the path on the way."""
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i


def split_groups(groups: list[list[int]], texts: list[str], labels: list[int]) -> list[str]:
    """The split of each row. A group goes to the first of test, validation that has room for all of it, else train."""
    counts = Counter(labels)
    room = {split: apportion(counts, total) for split, total in HELD_OUT.items()}
    split_of = ["train"] * len(labels)
    for group in sorted(groups, key=lambda rows: hashlib.sha256(texts[rows[0]].encode()).digest()):
        needed = Counter(labels[row] for row in group)
        for split, left in room.items():
            if needed <= left:
                left.subtract(needed)
                for row in group:
                    split_of[row] = split
                break
    return split_of


def apportion(counts: Counter, total: int) -> Counter:
    """`total` shared among the classes in proportion to `counts` (largest remainders, then class number)."""
    size = sum(counts.values())
    shares = Counter({label: count * total // size for label, count in counts.items()})
    by_remainder = sorted(counts, key=lambda label: (-(counts[label] * total % size), label))
    shares.update(by_remainder[: total - sum(shares.values())])
    return shares


# ---- Fashion-MNIST


def build_fashion_mnist() -> dict[str, dict[str, list]]:
    """900 images of each of the 10 classes, in the order of the official files, as grey 28 x 28 PNG."""
    first, last = IMAGES_PER_CLASS["train"], IMAGES_PER_CLASS["train"] + IMAGES_PER_CLASS["validation"]
    return {
        "train": select_images("train", 0, first),
        "validation": select_images("train", first, last),
        "test": select_images("t10k", 0, IMAGES_PER_CLASS["test"]),
    }


def select_images(part: str, first: int, last: int) -> dict[str, list]:
    """Images number `first` to `last - 1` of each class of one official part, as PNG bytes, and their labels."""
    images, labels = read_idx(part)
    rank = rank_in_class(labels)
    selected = (first <= rank) & (rank < last)
    pngs = [{"bytes": encode_png(image), "path": None} for image in images[selected]]
    return {"image": pngs, "label": labels[selected].tolist()}


def read_idx(part: str) -> tuple[np.ndarray, np.ndarray]:
    """Images `[N, 28, 28]` and labels `[N]`, uint8, of one official part (IDX files: 16 and 8 bytes of header)."""
    images = gzip.decompress((FASHION_MNIST / f"{part}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((FASHION_MNIST / f"{part}-labels-idx1-ubyte.gz").read_bytes())
    return np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28), np.frombuffer(labels, np.uint8, offset=8)


def rank_in_class(labels: np.ndarray) -> np.ndarray:
    """How many earlier examples have the same label, for each example."""
    rank = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        rank[labels == label] = np.arange((labels == label).sum())
    return rank


def encode_png(image: np.ndarray) -> bytes:
    """An uncompressed grey PNG: see the module docstring for why."""
    buffer = io.BytesIO()
    PILImage.fromarray(image).save(buffer, "PNG", compress_level=0)
    return buffer.getvalue()


if __name__ == "__main__":
    main()
