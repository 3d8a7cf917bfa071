"""Tiny checkpoints and data that tests write where they want them. A network learns them within a few steps.

Every function is a pure function of its arguments: the same files each time.
"""

import csv
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

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


def write_tiny_segformer(folder: str | Path, seed: int = 0) -> Path:
    """A SegFormer of four stages for images of 32 pixels, with its image processor."""
    _write_mask_processor(folder)
    config = transformers.SegformerConfig(
        depths=[1, 1, 1, 1],
        sr_ratios=[2, 1, 1, 1],
        hidden_sizes=[8, 16, 16, 32],
        patch_sizes=[3, 3, 3, 3],
        strides=[2, 2, 2, 2],
        num_attention_heads=[1, 1, 2, 2],
        mlp_ratios=[2, 2, 2, 2],
        decoder_hidden_size=16,
        initializer_range=0.1,
    )
    return _write(transformers.SegformerForSemanticSegmentation, config, folder, seed)


def write_tiny_yolos(folder: str | Path, seed: int = 0) -> Path:
    """A YOLOS of one layer for images of 32 pixels, with its image processor."""
    size = {"height": 32, "width": 32}
    transformers.YolosImageProcessorPil(size=size, do_pad=False).save_pretrained(folder)
    config = transformers.YolosConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=[32, 32],
        patch_size=8,
        num_detection_tokens=5,
        use_mid_position_embeddings=False,  # of one layer they would be an empty tensor, which learns nothing
    )
    return _write(transformers.YolosForObjectDetection, config, folder, seed)


def write_tiny_rt_detr(folder: str | Path, seed: int = 0) -> Path:
    """An RT-DETR of three classes and two layers for images of 32 pixels, with its image processor."""
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    transformers.RTDetrImageProcessorPil(size=size).save_pretrained(folder)
    body = transformers.RTDetrResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], layer_type="basic", out_indices=[2, 3, 4]
    )
    widths = dict.fromkeys(("encoder_hidden_dim", "d_model", "encoder_ffn_dim", "decoder_ffn_dim"), 16)
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = transformers.RTDetrConfig(
        backbone_config=body,
        encoder_in_channels=[8, 16, 16],
        decoder_in_channels=[16, 16, 16],
        decoder_layers=2,
        num_queries=5,
        num_labels=3,
        initializer_range=0.1,
        **widths,
        **heads,
    )
    return _write(transformers.RTDetrForObjectDetection, config, folder, seed)


def write_tiny_upernet(folder: str | Path, seed: int = 0) -> Path:
    """A UPerNet over a ResNet of four stages for images of 32 pixels, with its image processor."""
    _write_mask_processor(folder)
    body = transformers.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 8, 16, 16],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = transformers.UperNetConfig(
        backbone_config=body, hidden_size=16, pool_scales=[1, 2], auxiliary_channels=8, auxiliary_in_channels=16
    )
    return _write(transformers.UperNetForSemanticSegmentation, config, folder, seed)


def _write_mask_processor(folder: str | Path) -> None:
    transformers.SegformerImageProcessorPil(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    ).save_pretrained(folder)


CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def write_tiny_llama(folder: str | Path, seed: int = 0) -> Path:
    """A Llama of 2 layers and 32 units that reads 64 tokens, with a byte-level tokenizer and a chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    texts = [row["text"] for row in make_texts(200)] + [f"{word} means of a kind:" for word in FILLER_WORDS]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|end|>", additional_special_tokens=special[1:], model_max_length=64
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)
    config = transformers.LlamaConfig(
        vocab_size=len(fast),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=fast.eos_token_id,
        initializer_range=0.1,
    )
    return _write(transformers.LlamaForCausalLM, config, folder, seed)


def add_token(checkpoint: str | Path, folder: str | Path, token: str = "xyzzy") -> Path:
    """A copy whose tokenizer knows one token more than the embedding has rows."""
    shutil.copytree(checkpoint, folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([token])
    tokenizer.save_pretrained(folder)
    return Path(folder)


def make_completions(n: int, seed: int = 0) -> list[dict[str, str]]:
    """`n` rows of `prompt` and `completion`: a word, and the words of its class in a fixed order."""
    draw = np.random.default_rng(seed)
    rows = []
    for index in range(n):
        group = CLASS_WORDS[index % len(CLASS_WORDS)]
        words = " ".join(group[: int(draw.integers(2, len(group) + 1))])
        rows.append({"prompt": f"{draw.choice(group)} {draw.choice(FILLER_WORDS)}:", "completion": f" {words}"})
    return rows


def write_jsonl(path: str | Path, rows: Sequence[dict]) -> Path:
    """One JSON object a line."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Path(path)


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
