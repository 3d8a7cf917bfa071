"""Makes a text-to-text data set from WordNet's lists of irregular forms, and a small network's configuration for it.

    apt-get install wordnet-base
    python scripts/make_lemmas.py hftl/bundled/wordnet-lemmas hftl/bundled/t5-tiny

A row's `source` is a form with its part of speech, `verb: abetted`; its `target` is the word that a dictionary lists,
`abet`. A form with several words (`lay over`) or several lemmas is left out. All forms of a word are in one split, so
a model has to learn how forms are made: test and validation are the first words by the sha256 of the lemma. The
tokenizer of the configuration has a token for each byte. Source: the `.exc` files of WordNet 3.0, Princeton
University, WordNet 3.0 license, from Debian `wordnet-base`.
"""

import argparse
import hashlib
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, T5Config

WORDNET = Path("/usr/share/wordnet")
PARTS = ("noun", "verb", "adj", "adv")
SHARES = {"test": 0.15, "validation": 0.05, "train": 0.8}
SPECIAL = ["<pad>", "</s>", "<unk>"]


def read_rows() -> list[dict[str, str]]:
    """Every form with its only lemma."""
    rows = []
    for part in PARTS:
        lemmas: dict[str, set[str]] = {}
        for line in (WORDNET / f"{part}.exc").read_text(encoding="utf-8").splitlines():
            form, *words = line.split()
            lemmas.setdefault(form, set()).update(words)
        rows += [
            {"source": f"{part}: {form}", "target": next(iter(words))}
            for form, words in lemmas.items()
            if len(words) == 1 and "_" not in form + next(iter(words))
        ]
    return rows


def split_rows(rows: list[dict[str, str]]) -> dict[str, list[dict[str, str]]]:
    """All forms of a lemma in one split; rows in the order of the sha256 of what is read."""
    rows = sorted(rows, key=lambda row: hashlib.sha256(row["source"].encode()).hexdigest())
    words = sorted({row["target"] for row in rows}, key=lambda word: hashlib.sha256(word.encode()).hexdigest())
    first = int(SHARES["test"] * len(words))
    second = first + int(SHARES["validation"] * len(words))
    parts = {"test": set(words[:first]), "validation": set(words[first:second]), "train": set(words[second:])}
    return {split: [row for row in rows if row["target"] in part] for split, part in parts.items()}


def write_network(folder: Path) -> None:
    """A configuration of T5 with 0.7 M parameters, and a tokenizer of bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **names).save_pretrained(folder)
    sizes = {"d_model": 128, "d_kv": 32, "d_ff": 256, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.1}
    tokens = {"vocab_size": len(vocabulary), "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    config = T5Config(**sizes, **tokens, architectures=["T5ForConditionalGeneration"])
    config.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("network", type=Path)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for split, rows in split_rows(read_rows()).items():
        path = options.folder / f"{split}.parquet"
        pq.write_table(pa.Table.from_pylist(rows), path, compression="zstd", compression_level=19)
        print(f"{split}: {len(rows)} rows, sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}")
    write_network(options.network)
    shutil.copyfile(options.folder.parent / "wordnet" / "LICENSE", options.folder / "LICENSE")


if __name__ == "__main__":
    main()
