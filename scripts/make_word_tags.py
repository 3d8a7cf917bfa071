"""Makes a token-classification data set from WordNet's example sentences: which word is meant, and its part of speech.

    apt-get install wordnet-base
    python scripts/make_word_tags.py hftl/bundled/wordnet-words

A synset's gloss quotes sentences that use one of its words. In each, the first word that is one of the synset's (as
it stands, or with a regular ending) gets the tag B-NOUN, B-VERB, B-ADJ or B-ADV, all others O. So a tagger has to say
which word of a sentence a dictionary would quote it for. Sentences in which none is found are left out; so are those
of fewer than three words, and second copies. 6,000 rows are train, 1,000 validation and 2,000 test, in the order
of the sha256 of their sentences. Source: WordNet 3.0, Princeton University, WordNet 3.0 license, from Debian
`wordnet-base`.
"""

import argparse
import hashlib
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

WORDNET = Path("/usr/share/wordnet")
PARTS = {"noun": "NOUN", "verb": "VERB", "adj": "ADJ", "adv": "ADV"}
SIZES = {"test": 2000, "validation": 1000, "train": 6000}
ENDINGS = ("", "s", "es", "d", "ed", "ing", "er", "est", "ly")
WORD = re.compile(r"\w+(?:[-'’.]\w+)*|[^\w\s]")


def read_rows() -> list[dict[str, list[str]]]:
    """Every sentence with its tags, in the order of the database."""
    rows: dict[str, dict[str, list[str]]] = {}
    for part, name in PARTS.items():
        for line in (WORDNET / f"data.{part}").read_text(encoding="utf-8").splitlines():
            if line.startswith(" "):
                continue
            fields, _, gloss = line.partition(" | ")
            columns = fields.split()
            lemmas = {columns[4 + 2 * i].split("(")[0].lower() for i in range(int(columns[3], 16))}
            for sentence in re.findall(r'"([^"]+)"', gloss):
                words = WORD.findall(sentence)
                if len(words) < 3 or sentence in rows:
                    continue
                place = next((i for i, word in enumerate(words) if is_form(word.lower(), lemmas)), None)
                if place is not None:
                    tags = ["O"] * len(words)
                    tags[place] = f"B-{name}"
                    rows[sentence] = {"tokens": words, "tags": tags}
    return list(rows.values())


def is_form(word: str, lemmas: set[str]) -> bool:
    """Whether the word is one of the lemmas with a regular ending."""
    if word in lemmas:
        return True
    for ending in ENDINGS[1:]:
        if word.endswith(ending):
            stem = word[: -len(ending)]
            is_doubled = len(stem) > 3 and stem[-1] == stem[-2]
            if stem in lemmas or f"{stem}e" in lemmas or (is_doubled and stem[:-1] in lemmas):
                return True
            if stem.endswith("i") and f"{stem[:-1]}y" in lemmas:
                return True
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    rows = sorted(read_rows(), key=lambda row: hashlib.sha256(" ".join(row["tokens"]).encode()).hexdigest())
    start = 0
    for split, size in SIZES.items():
        table = pa.Table.from_pylist(rows[start : start + size])
        pq.write_table(table, folder / f"{split}.parquet", compression="zstd", compression_level=19)
        start += size


if __name__ == "__main__":
    main()
