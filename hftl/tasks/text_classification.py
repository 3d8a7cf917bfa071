"""Text classification: one label, several labels or a number for a text or a pair of texts."""

import hashlib
import warnings
from typing import Any

import datasets
import torch
import transformers
from transformers import DataCollatorWithPadding

from hftl.tasks.base import build_label_tensor
from hftl.tasks.labelled import LabelledTask
from hftl.tasks.processors import load_tokenizer, map_cached, widen_vocabulary

MAX_LENGTH = 512  # tokens; what BERT-sized encoders were trained with
INPUTS = ("input_ids", "token_type_ids")


class TextClassification(LabelledTask):
    name = "text-classification"
    modality = "text"
    auto_model = "AutoModelForSequenceClassification"
    peft_task_type = "SEQ_CLS"
    pipeline_tag = "text-classification"
    snippet = """inputs = processor({example}, truncation=True, return_tensors="pt")
with torch.no_grad():
    logits = model(**inputs).logits
print({answer})"""

    def load_processor(self, source: str, revision: str, args: Any) -> Any:
        return load_tokenizer(source, revision, args.max_length, default_length=MAX_LENGTH)

    def encode(self, rows: dict[str, list], processor: Any, args: Any) -> dict[str, list]:
        is_pair = "text_pair" in rows
        texts = (rows["text"], rows["text_pair"]) if is_pair else (rows["text"],)
        encoded = processor(*texts, truncation=True, padding=False, return_attention_mask=False)
        columns = {name: encoded[name] for name in INPUTS if name in encoded}
        if not is_pair:  # one segment: all zeros, which every model fills in by itself
            columns.pop("token_type_ids", None)
        is_cut = [bool(encoding.overflowing) for encoding in encoded.encodings]
        return {"length": [len(ids) for ids in columns["input_ids"]], "is_cut": is_cut, **columns}

    def prepare(self, dataset: datasets.Dataset, processor: Any, args: Any, fingerprint: str) -> datasets.Dataset:
        def tokenize(rows: dict[str, list]) -> dict[str, list]:
            return {"row_id": rows["row_id"], "labels": rows["label"], **self.encode(rows, processor, args)}

        key = {
            "rows": fingerprint,
            "tokenizer": hashlib.sha256(processor.backend_tokenizer.to_str().encode()).hexdigest(),
            "max_length": processor.model_max_length,
            "columns": "is_cut",
            "transformers": transformers.__version__,
        }
        return map_cached(dataset, tokenize, key, description="Tokenizing")

    def describe_rows(self, rows: dict[str, datasets.Dataset], processor: Any, args: Any) -> dict[str, Any]:
        counts = {
            split: {"num_rows": len(part), "num_tokens": sum(part["length"][:]), "num_cut": sum(part["is_cut"][:])}
            for split, part in rows.items()
        }
        return {"tokens": counts}

    def build_collator(self, processor: Any, args: Any, augmentation: str) -> "TextCollator":
        return TextCollator(processor)

    def adjust_config(self, config: Any, processor: Any, info: Any) -> None:
        super().adjust_config(config, processor, info)
        widen_vocabulary(config, processor)
        if getattr(config, "pad_token_id", None) is None:
            config.pad_token_id = processor.pad_token_id
        if getattr(config, "is_encoder_decoder", False) and getattr(config, "decoder_start_token_id", None) is None:
            config.decoder_start_token_id = config.pad_token_id


class TextCollator:
    """Pad a batch to its longest row.

    Returns:
        `input_ids`, `attention_mask` (and `token_type_ids`) int64 [B, T]; `labels` when the rows have them.
    """

    def __init__(self, tokenizer: Any) -> None:
        # Tensor cores want multiples of 8; on a CPU the extra columns would only be work.
        self.pad = DataCollatorWithPadding(tokenizer, pad_to_multiple_of=8 if torch.cuda.is_available() else None)

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            batch = dict(self.pad([{name: row[name] for name in INPUTS if name in row} for row in rows]))
        if "labels" in rows[0]:
            batch["labels"] = build_label_tensor([row["labels"] for row in rows])
        return batch
