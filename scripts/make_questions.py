"""Makes a question-answering data set from WordNet: which word of a passage has this definition, if any?

    apt-get install wordnet-base
    python scripts/make_questions.py hftl/bundled/wordnet-questions

A passage is four example sentences of four synsets; a question is the definition of one of them, and its answer the
word that its sentence is quoted for, as it stands there (found as in `make_word_tags.py`). One question of five is a
definition that belongs to no sentence of the passage and has no answer. Definition and sentence seldom share words, so
that to look for them does not help. 1,100 passages are train, 100 validation and 300 test, four questions each, in the
order of the sha256 of their sentences; a sentence and a synset is in one split. Source: WordNet 3.0, Princeton
University, WordNet 3.0 license, from Debian `wordnet-base`.
"""

import argparse
import hashlib
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from make_word_tags import PARTS, WORD, WORDNET, is_form

PASSAGES = {"test": 300, "validation": 100, "train": 1100}
SENTENCES = 4  # of a passage
NO_ANSWER = 5  # every fifth question


def read_examples() -> list[dict[str, str | int]]:
    """One example of each synset that has one: definition, sentence, answer and its place, in a fixed mixed order."""
    examples: dict[str, dict[str, str | int]] = {}
    for part in PARTS:
        for line in (WORDNET / f"data.{part}").read_text(encoding="utf-8").splitlines():
            if line.startswith(" "):
                continue
            fields, _, gloss = line.partition(" | ")
            columns = fields.split()
            lemmas = {columns[4 + 2 * i].split("(")[0].lower() for i in range(int(columns[3], 16))}
            definition = gloss.split('"')[0].strip().rstrip(";:").strip()
            for sentence in re.findall(r'"([^"]+)"', gloss):
                match = next((m for m in WORD.finditer(sentence) if is_form(m.group().lower(), lemmas)), None)
                if match and definition and len(sentence.split()) > 2 and sentence not in examples:
                    examples[sentence] = {
                        "definition": definition,
                        "sentence": sentence,
                        "answer": match.group(),
                        "start": match.start(),
                    }
                    break
    return sorted(examples.values(), key=lambda row: hashlib.sha256(row["sentence"].encode()).hexdigest())


def write_passages(examples: list[dict[str, str | int]]) -> list[dict]:
    """Rows in the layout of SQuAD on the Hub; the last example answers nothing, but is asked for."""
    rows = []
    for first in range(0, len(examples) - SENTENCES, SENTENCES):
        chosen, context, places = examples[first : first + SENTENCES], "", []
        for example in chosen:
            places.append(len(context) + example["start"])
            context += example["sentence"].rstrip(" .;,") + ". "
        for example, place in zip(chosen, places, strict=True):
            number = len(rows)
            is_without = number % NO_ANSWER == NO_ANSWER - 1
            asked = examples[(first + SENTENCES + 7 * SENTENCES) % len(examples)] if is_without else example
            answers = {"text": [example["answer"]], "answer_start": [place]}
            rows.append(
                {
                    "id": str(number),
                    "question": asked["definition"],
                    "context": context.strip(),
                    "answers": {"text": [], "answer_start": []} if is_without else answers,
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    examples, start = read_examples(), 0
    for split, count in PASSAGES.items():
        end = start + count * SENTENCES
        table = pa.Table.from_pylist(write_passages(examples[start : end + 1]))
        pq.write_table(table, folder / f"{split}.parquet", compression="zstd", compression_level=19)
        start = end


if __name__ == "__main__":
    main()
