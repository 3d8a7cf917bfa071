"""Tiny checkpoints and data that tests write where they want them. A network learns them within a few steps.

Every function is a pure function of its arguments: the same files each time.
"""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

LABELS = ("animal", "motion", "weather")
# Words that only texts of one class hold, by the position of the class; the rest of a text says nothing.
CLASS_WORDS = (
    ("cat", "dog", "horse", "bird", "paw", "fur"),
    ("run", "jump", "walk", "fall", "turn", "ride"),
    ("rain", "snow", "storm", "wind", "cloud", "hail"),
    ("bread", "soup", "rice", "salt", "fruit", "meat"),
)
FILLER_WORDS = (
    "a",
    "the",
    "of",
    "to",
    "in",
    "on",
    "with",
    "and",
    "very",
    "some",
    "any",
    "this",
    "that",
    "is",
    "was",
    "more",
)
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MAX_LENGTH = 32  # tokens, position embeddings of the tiny BERT
IMAGE_SIZE = 32  # pixels


def write_tiny_bert(folder: str | Path, seed: int = 0) -> Path:
    """A BERT body of 2 layers and 32 units with its fast tokenizer, as plain safetensors."""
    letters = tuple(character for letter in "abcdefghijklmnopqrstuvwxyz" for character in (letter, f"##{letter}"))
    words = [*SPECIAL_TOKENS, *FILLER_WORDS, *(word for group in CLASS_WORDS for word in group), *letters]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys(words))}
    _build_tokenizer(vocabulary).save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=MAX_LENGTH,
        initializer_range=0.1,  # with the usual 0.02 so small a network gives every text nearly the same features
    )
    return _write(transformers.BertModel, config, folder, seed)


def _build_tokenizer(vocabulary: dict[str, int]) -> transformers.PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(
        ("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"])
    )
    return transformers.BertTokenizerFast(tokenizer_object=tokenizer, model_max_length=MAX_LENGTH)


def write_tiny_vit(folder: str | Path, seed: int = 0) -> Path:
    """A ViT of 2 layers and 32 units for images of 32 pixels, with its image processor."""
    _write_image_processor(folder)
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=IMAGE_SIZE,
        patch_size=8,
        initializer_range=0.1,
    )
    return _write(transformers.ViTForImageClassification, config, folder, seed)


def write_tiny_convnet(folder: str | Path, seed: int = 0) -> Path:
    """A ResNet of two stages, with BatchNorm, for images of 32 pixels, with its image processor."""
    _write_image_processor(folder)
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=2
    )
    return _write(transformers.ResNetForImageClassification, config, folder, seed)


def _write_image_processor(folder: str | Path) -> None:
    transformers.ViTImageProcessorPil(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    ).save_pretrained(folder)


def _write(
    network_class: type[transformers.PreTrainedModel],
    config: transformers.PreTrainedConfig,
    folder: str | Path,
    seed: int,
) -> Path:
    with torch.random.fork_rng(devices=[]):  # the caller's random state is left as it was
        torch.manual_seed(seed)
        network_class(config).save_pretrained(folder)
    return Path(folder)


def make_texts(n: int, labels: Sequence[str] = LABELS, seed: int = 0) -> list[dict[str, str]]:
    """`n` rows of `text` and `label`, labels in turn: words of the class among filler words, all texts unlike."""
    draw = np.random.default_rng(seed)
    rows, seen = [], set()
    while len(rows) < n:
        index = len(rows) % len(labels)
        words = [*draw.choice(CLASS_WORDS[index], 3), *draw.choice(FILLER_WORDS, int(draw.integers(1, 6)))]
        text = " ".join(draw.permutation(words))
        if text not in seen:
            seen.add(text)
            rows.append({"text": text, "label": labels[index]})
    return rows


def write_text_csv(path: str | Path, n: int, labels: Sequence[str] = LABELS, seed: int = 0) -> Path:
    """A CSV with the columns `text` and `label`; another seed gives other texts of the same kind."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["text", "label"])
        writer.writeheader()
        writer.writerows(make_texts(n, labels, seed))
    return Path(path)


def write_text_task(folder: str | Path) -> Path:
    """What a run on texts needs: `bert`, `train.csv` with 24 rows and `test.csv` with 9 others."""
    write_tiny_bert(Path(folder) / "bert")
    write_text_csv(Path(folder) / "train.csv", 24)
    write_text_csv(Path(folder) / "test.csv", 9, seed=1)
    return Path(folder)


def write_image_folder(
    folder: str | Path, n_per_class: int, labels: Sequence[str] = ("blue", "green", "red"), seed: int = 0
) -> Path:
    """One folder a class with PNGs of IMAGE_SIZE: the class is the colour, with noise of 40 of 255 levels on it."""
    draw = np.random.default_rng(seed)
    colours = ((40, 40, 210), (40, 210, 40), (210, 40, 40), (210, 210, 40))
    for label, colour in zip(labels, colours, strict=False):
        (Path(folder) / label).mkdir(parents=True, exist_ok=True)
        for index in range(n_per_class):
            noise = draw.integers(-40, 41, (IMAGE_SIZE, IMAGE_SIZE, 3))
            Image.fromarray((np.array(colour) + noise).astype(np.uint8)).save(Path(folder) / label / f"{index}.png")
    return Path(folder)
