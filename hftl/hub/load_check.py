"""Do the files that would go up load with plain transformers and peft, and give the answers of the run?

`python load_check.py JOB.json ...` prints one JSON object a line for each job. It runs in a process of its own, with a
Hub cache that holds nothing but those files and the base model, and imports nothing of hftl: what it can do, everybody
can.
"""

import io
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
import transformers
from PIL import Image
from safetensors import safe_open
from transformers.utils import cached_file

MOST_KEPT = 4096  # numbers of a row that are compared where there are more, as of every pixel of a mask
NUM_KEPT = 64  # logits of a language model's next token, the largest ones: all of them would be megabytes
PIXEL_TOLERANCE = 2e-2  # of a normalized pixel: one level of 255 is about as much
TOO_SMALL = 1e-6  # of a logit


def build_inputs(processor: Any, row: dict[str, Any]) -> dict[str, torch.Tensor]:
    """What a network reads of one canary row, made as a user would make it."""
    if row.get("image") is not None:
        image = Image.open(io.BytesIO(row["image"])).convert("RGB")
        return {"pixel_values": processor(images=image, return_tensors="pt")["pixel_values"]}
    if row.get("words") is not None:
        inputs = processor(list(row["words"]), is_split_into_words=True, truncation=True, return_tensors="pt")
        return {name: inputs[name] for name in ("input_ids", "attention_mask")}
    texts = [row["text"]] if row.get("text_pair") is None else [row["text"], row["text_pair"]]
    is_chat = row.get("messages") is not None  # whose template has written the special tokens already
    inputs = processor(*texts, truncation=True, add_special_tokens=not is_chat, return_tensors="pt")
    # The segments of one text are all zeros, which networks that know them fill in, and others do not take.
    names = ("input_ids", "attention_mask", "token_type_ids")[: 1 + len(texts)]
    return {name: inputs[name] for name in names if name in inputs}


@torch.no_grad()
def compute_logits(
    network: Any, inputs: dict[str, torch.Tensor], names: Sequence[str], *, is_last: bool
) -> np.ndarray:
    """Float32 answers of one row, flat: the outputs of these names one after the other.

    Args:
        network: in evaluation.
        inputs: one row.
        names: fields of the network's output.
        is_last: of the last position alone, [V] of the token that comes next.
    """
    config = getattr(network, "module", network).config
    if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" not in inputs and "input_ids" in inputs:
        start = torch.full_like(inputs["input_ids"][:, :1], config.decoder_start_token_id)
        inputs = inputs | {"decoder_input_ids": start}
    outputs = network(**inputs)
    found = [getattr(outputs, name)[0].float().cpu() for name in names]
    return torch.cat([(values[-1] if is_last else values).reshape(-1) for values in found]).numpy()


def load_network(job: dict[str, Any], problems: list[str]) -> Any:
    """The network as the card says to load it; what of it was not in the files goes to `problems`."""
    auto = getattr(transformers, job["auto_model"])
    where = {"subfolder": job["subfolder"], "cache_dir": job["cache"]}
    options = {"trust_remote_code": False, "output_loading_info": True}
    if job["base"] is None:
        network, report = auto.from_pretrained(job["repo_id"], use_safetensors=True, **where, **options)
        name_missing(report, set(), problems)
        return network.eval()
    from peft import PeftModel, get_peft_model_state_dict

    if job["quantization"]:
        options["quantization_config"] = transformers.BitsAndBytesConfig(**job["quantization"])
    config = transformers.AutoConfig.from_pretrained(job["repo_id"], trust_remote_code=False, **where)
    num_tokens = getattr(config, "vocab_size", None)
    if job["base_tokens"]:  # the adapter brings rows for tokens that were added
        config.vocab_size = job["base_tokens"]
    base, report = auto.from_pretrained(
        job["base"],
        revision=job["base_revision"],
        config=config,
        cache_dir=job["cache"],
        use_safetensors=True,
        ignore_mismatched_sizes=True,
        **options,
    )
    for module in base.modules():  # where bitsandbytes 0.50 rounds scales in evaluation, on CPUs with AVX512_BF16
        if type(module).__name__ == "Linear4bit":
            module.support_avx512bf16_for_cpu = False
    if job["base_tokens"]:
        base.resize_token_embeddings(num_tokens, mean_resizing=False)
    path = cached_file(job["repo_id"], "adapter_model.safetensors", subfolder=job["subfolder"], cache_dir=job["cache"])
    with safe_open(path, "pt") as file:
        stored = set(file.keys())
    name_missing(report, stored, problems)
    # By its folder: offline, peft 0.21 looks for a Hub id's subfolder inside that subfolder.
    network = PeftModel.from_pretrained(base, os.path.dirname(path))
    expected = set(get_peft_model_state_dict(network, save_embedding_layers=False))
    if lacking := sorted(expected - stored):
        problems.append(f"weights missing: the adapter lacks {shorten(lacking)}, which its configuration asks for")
    if foreign := sorted(name for name in stored - expected if "embed" not in name and "lm_head" not in name):
        problems.append(f"other architecture: nothing in the base takes {shorten(foreign)} of the adapter")
    return network.eval()


def name_missing(report: dict[str, Any], stored: set[str], problems: list[str]) -> None:
    """Name what starts at random: missing or of another shape in the checkpoint, and not in the adapter either."""
    replaced = {name[dot:] for name in stored for dot in range(1, len(name)) if name[dot - 1] == "."}  # ends of names
    changed = {entry[0] if isinstance(entry, (tuple, list)) else entry for entry in report["mismatched_keys"]}
    missing = [name for name in {*report["missing_keys"], *changed} if name not in replaced]
    statistics = sorted(name for name in missing if "running_" in name or "num_batches_tracked" in name)
    reshaped = sorted(name for name in changed if name in missing)
    others = sorted(set(missing) - set(statistics) - set(reshaped))
    if statistics:
        problems.append(f"BatchNorm statistics missing: {shorten(statistics)}")
    if reshaped:
        problems.append(f"weights of another shape: {shorten(reshaped)}")
    if others:
        problems.append(f"weights missing, which would start at random: {shorten(others)}")
    if unexpected := sorted(report["unexpected_keys"]) if not stored else []:
        problems.append(f"weights that the network does not have: {shorten(unexpected)}")


def shorten(names: list[str]) -> str:
    """The first four of them."""
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def check_inputs(processor: Any, row: dict[str, Any], inputs: dict[str, torch.Tensor]) -> str | None:
    """What is unlike the inputs that the processor of the run made, or None."""
    if row.get("messages") is not None:
        tools = json.loads(row["tools"]) if row.get("tools") else None
        text = processor.apply_chat_template(json.loads(row["messages"]), tools=tools, tokenize=False)
        if text != row["text"]:
            return f"chat template: row {row['row_id']} is written otherwise than in the run"
    if row.get("image") is None:
        found = inputs["input_ids"][0].tolist()
        if found != list(row["input_ids"]):
            return f"tokenizer: row {row['row_id']} has other tokens than in the run"
        return None
    pixels, shape = inputs["pixel_values"][0].numpy(), tuple(row["pixel_shape"])
    if pixels.shape != shape:
        return f"image processor: row {row['row_id']} becomes {list(pixels.shape)} pixels, in the run {list(shape)}"
    expected = np.frombuffer(row["pixel_values"], np.float16).astype(np.float32).reshape(shape)
    difference = float(np.abs(pixels - expected).max())
    if difference > PIXEL_TOLERANCE:
        return f"image processor: row {row['row_id']} has other pixel values than in the run (by {difference:.2g})"
    return None


def compare_logits(
    rows: list[dict[str, Any]], found: list[np.ndarray], job: dict[str, Any]
) -> tuple[float, str | None]:
    """The largest difference in units of the logits' spread, and what is wrong, or None."""
    kept = [np.asarray(row["logits"], np.float32) for row in rows]
    if any(len(logits) != job["num_logits"] for logits in found if job["num_logits"]):
        return float("inf"), f"head: {len(found[0])} outputs instead of {job['num_logits']}"
    if rows[0].get("logit_ids") is not None:
        found = [logits[np.asarray(row["logit_ids"])] for row, logits in zip(rows, found, strict=True)]
    if any(len(e) != len(a) for e, a in zip(kept, found, strict=True)):
        return float("inf"), "answers: a row has another number of outputs than in the run"
    expected, actual = np.concatenate(kept), np.concatenate(found)
    if not np.isfinite(actual).all():
        return float("inf"), "answers: logits are not finite (NaN or infinite weights)"
    scale = max(float(expected.std()), 0.1 * float(np.abs(expected).max()), TOO_SMALL)
    difference = float(np.abs(expected - actual).max()) / scale
    changed = [row["row_id"] for row, e, a in zip(rows, kept, found, strict=True) if e.argmax() != a.argmax()]
    if not difference <= job["tolerance"]:
        labels = f"; another label for row {shorten(list(map(str, changed)))}" if changed and len(kept[0]) > 1 else ""
        return difference, (
            f"answers: a logit differs from that of the run by {difference:.2g} of their spread, allowed are "
            f"{job['tolerance']:g}{labels}"
        )
    return difference, None


def check(job: dict[str, Any], problems: list[str]) -> dict[str, Any]:
    """Load, answer the canary rows, compare; what is found goes to `problems`, the rest is returned."""
    rows = pq.read_table(job["canary"]).to_pylist()
    is_image = rows[0].get("image") is not None
    auto = transformers.AutoImageProcessor if is_image else transformers.AutoTokenizer
    where = {"subfolder": job["subfolder"], "cache_dir": job["cache"], "trust_remote_code": False}
    processor = auto.from_pretrained(job["repo_id"], **where)
    inputs = [build_inputs(processor, row) for row in rows]
    wrong = [text for row, one in zip(rows, inputs, strict=True) if (text := check_inputs(processor, row, one))]
    problems += wrong[:1]
    network = load_network(job, problems)
    found = [compute_logits(network, one, job["outputs"], is_last=job["is_last"]) for one in inputs]
    difference, text = compare_logits(rows, found, job)
    problems += [text] if text else []
    return {"difference": difference, "num_rows": len(rows)}


def main() -> None:
    transformers.utils.logging.set_verbosity_error()
    for path in sys.argv[1:]:
        with open(path, encoding="utf-8") as file:
            job = json.load(file)
        problems: list[str] = []
        numbers = {}
        try:
            numbers = check(job, problems)
        except Exception as error:  # whatever it is, the files do not load
            problems.append(f"does not load with plain transformers and peft: {type(error).__name__}: {error}")
        sys.stdout.write("\n" + json.dumps({"problems": problems, **numbers}) + "\n")


if __name__ == "__main__":
    main()
