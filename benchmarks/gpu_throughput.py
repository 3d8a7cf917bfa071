"""How fast does hftl train on one GPU, beside a stock Trainer on the same GPU in the same call?

    python benchmarks/gpu_throughput.py                                   # llama, bert, vit; about three minutes
    python benchmarks/gpu_throughput.py --parts bert --max_seconds 60
    python benchmarks/gpu_throughput.py --config tiny --repeats 1         # the same code within seconds, on a CPU

- llama: LoRA on every linear layer of an 8B Llama, one packed sequence of 4,096 tokens a step. Ours: with and without
  activation checkpoints, the loss over chunks. Stock: checkpoints, float32 logits of all tokens.
- bert: BERT-base, all weights, 128 real tokens a row. Ours: `hftl.train`. Stock: `Trainer` at its defaults (batch 8,
  float32), and with the batch of ours and `--bf16`. Data-free: one batch that stays on the GPU, again and again.
- vit: ViT-B/16 at 224 px, JPEG files of 500 x 375 px. Ours: `hftl.train`, which decodes and resizes once (its seconds
  are given). Stock: the transform of the public example script (decode, random crop and flip, normalize, each time
  anew), with no worker as by default and with eight. Both with batch 128 and bfloat16.

Weights are random, so nothing is downloaded. The clock leaves the first steps out. MFU: 6 (LoRA: 4) operations a token
and weight of the body's matrix products over 989e12, without the products of attention, which are given beside it.
Each measurement is written when it is made, and one that fails leaves its error and not the others.
"""

import argparse
import io
import json
import os
import signal
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import transformers
from llama_training import build_trainee, compute_stock_loss, train_step
from memory_plan import CASES, PEAK_FLOPS, SHAPES
from qlora_70b import SXM, find_device, measure_steps, release_memory, write_results
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

RESULTS = Path(__file__).parent / "results" / "gpu-throughput.json"
LABELS = ("a", "b", "c", "d")
# Settings of each part: on a GPU, and tiny.
LLAMA = {"gpu": {"length": 4096, "steps": 9}, "tiny": {"length": 32, "steps": 3}}
BERT = {
    "gpu": {"batch": 128, "length": 128, "rows": 4096, "steps": 120, "warm_up": 30, "network": {}},
    "tiny": {"batch": 8, "length": 16, "rows": 64, "steps": 4, "warm_up": 2}
    | {"network": {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}},
}
VIT = {
    "gpu": {"batch": 128, "size": 224, "rows": 1280, "steps": 60, "warm_up": 20, "photo": (500, 375), "network": {}},
    "tiny": {"batch": 4, "size": 32, "rows": 24, "steps": 4, "warm_up": 2, "photo": (50, 38)}
    | {"network": BERT["tiny"]["network"] | {"image_size": 32, "patch_size": 8}},
}
VOCABULARY = {"gpu": 30522, "tiny": 200}


class StepClock(TrainerCallback):
    """Seconds from the end of step `warm_up` to the end of step `steps`, when the device is done with both."""

    def __init__(self, warm_up: int, steps: int) -> None:
        self.times = dict.fromkeys((warm_up, steps), 0.0)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step in self.times:
            self.times[state.global_step] = read_clock()

    def rate(self, batch: int) -> float:
        """Examples a second."""
        (first, start), (last, end) = sorted(self.times.items())
        return (last - first) * batch / (end - start)


def read_clock() -> float:
    """Now, when the device has done what it was told."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def describe_speed(rate: float, tokens: int, config: Any) -> dict[str, Any]:
    """A rate of examples, in tokens and as a share of the peak; `config` is that of a BERT or ViT."""
    width, layers = config.hidden_size, config.num_hidden_layers
    flops = 6 * layers * (4 * width**2 + 2 * width * config.intermediate_size)
    attention = 12 * layers * width * tokens
    has_peak = torch.cuda.is_available() and torch.cuda.get_device_name() in SXM
    return {
        "examples_per_second": rate,
        "tokens_per_second": rate * tokens,
        "flops_per_token": flops,
        "attention_flops_per_token": attention,
        "mfu": rate * tokens * flops / PEAK_FLOPS if has_peak else None,
        "mfu_with_attention": rate * tokens * (flops + attention) / PEAK_FLOPS if has_peak else None,
        "peak_memory_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
    }


# --- the sides


def time_ours(words: list[str], settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """`hftl.training.run` with its defaults but for the batch and the number of steps."""
    from hftl.config import parse_args
    from hftl.training.run import run

    clock = StepClock(settings["warm_up"], settings["steps"])
    with tempfile.TemporaryDirectory(dir=folder) as out:
        words = [*words, "--max_steps", str(settings["steps"]), "--output_dir", f"{out}/run"]
        words += ["--per_device_train_batch_size", str(settings["batch"]), "--disable_tqdm", "true"]
        args = parse_args(words, mode="full")
        record = run(args, callbacks=[clock])
    return {
        "rate": clock.rate(settings["batch"]),
        "precision": record.environment["precision"],
        "workers": args.training.dataloader_num_workers,
        "startup_seconds": record.cost["startup_seconds"],
        "train_seconds": record.cost["train_seconds"],
    }


def time_stock(network: Any, rows: Any, collator: Any, settings: dict[str, Any], **flags: Any) -> dict[str, Any]:
    """A `Trainer` with its defaults but for the number of steps and `flags`; `batch` of None is the default of 8."""
    clock = StepClock(settings["warm_up"], settings["steps"])
    if settings["batch"]:
        flags["per_device_train_batch_size"] = settings["batch"]
    device = {} if torch.cuda.is_available() else {"use_cpu": True}
    with tempfile.TemporaryDirectory() as out:
        args = TrainingArguments(
            out,
            max_steps=settings["steps"],
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **flags,
            **device,
        )
        Trainer(network, args, data_collator=collator, train_dataset=rows, callbacks=[clock]).train()
    return {"rate": clock.rate(args.per_device_train_batch_size), "workers": args.dataloader_num_workers}


def time_data_free(network: Any, batch: dict[str, torch.Tensor], settings: dict[str, Any]) -> dict[str, Any]:
    """The steps alone, as Trainer takes them with `--bf16`, on one batch that stays where it is."""
    device = find_device()
    network.to(device).train()
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    optimizer, times = torch.optim.AdamW(network.parameters(), lr=1e-5, fused=True), []
    for _ in range(settings["warm_up"] // 2 + settings["steps"] // 2):
        with torch.autocast(device.type, dtype=torch.bfloat16):
            loss = network(**batch).loss
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        times.append(read_clock() if len(times) in (settings["warm_up"] // 2 - 1,) else 0.0)
    times[-1] = read_clock()
    seconds = times[-1] - times[settings["warm_up"] // 2 - 1]
    return {"rate": settings["steps"] // 2 * settings["batch"] / seconds}


# --- the parts


def measure_llama(scale: str, folder: Path, repeats: int) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """LoRA of an 8B Llama; one network for all sides."""
    shape, settings = SHAPES["8b" if scale == "gpu" else "tiny"], LLAMA[scale]
    trainee = build_trainee(shape, CASES["8b-lora"], find_device(), checkpointing=False)
    layers = trainee.network.model.layers

    def measure(is_checkpointed: bool, step: Any = None, is_compiled: bool = False) -> dict[str, Any]:
        release_memory(trainee)
        if is_checkpointed:
            trainee.network.gradient_checkpointing_enable({"use_reentrant": False})
        else:
            trainee.network.gradient_checkpointing_disable()
        if is_compiled:
            for layer in layers:
                layer.compile()
        num_steps = settings["steps"] + 2 * is_compiled
        return measure_steps(trainee, shape, "lora", settings["length"], num_steps, step)

    def step_like_stock(trainee: Any, input_ids: torch.Tensor) -> float:
        return train_step(trainee, input_ids, compute_stock_loss)

    for _ in range(repeats):
        yield "stock", lambda: measure(True, step_like_stock)
        yield "ours", lambda: measure(False)
        yield "ours, checkpoints", lambda: measure(True)
    if scale == "gpu":
        yield "ours, compiled", lambda: measure(False, is_compiled=True)


def measure_bert(scale: str, folder: Path, repeats: int) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """All weights of BERT-base."""
    import datasets

    settings = BERT[scale]
    config = transformers.BertConfig(vocab_size=VOCABULARY[scale], **settings["network"])
    tokenizer = write_bert(folder / "bert", config, settings["length"])
    texts, labels = draw_texts(settings["rows"], settings["length"] - 2, config.vocab_size)
    for name, rows in (("train", range(settings["rows"])), ("test", range(4 * settings["batch"]))):
        lines = [f"{texts[row % len(texts)]},{labels[row % len(labels)]}\n" for row in rows]
        (folder / f"{name}.csv").write_text("text,label\n" + "".join(lines))
    words = ["--train_file", f"{folder}/train.csv", "--test_file", f"{folder}/test.csv"]
    words += ["--model_name_or_path", f"{folder}/bert", "--on_bad_rows", "skip"]
    encoded = tokenizer(texts, truncation=True)
    assert {len(ids) for ids in encoded["input_ids"]} == {settings["length"]}
    stock_rows = datasets.Dataset.from_dict(dict(encoded) | {"labels": [LABELS.index(label) for label in labels]})

    def finish(result: dict[str, Any]) -> dict[str, Any]:
        return result | describe_speed(result.pop("rate"), settings["length"], config)

    def load() -> Any:
        return transformers.AutoModelForSequenceClassification.from_pretrained(folder / "bert", num_labels=4)

    def stock(batch: int | None, **flags: Any) -> dict[str, Any]:
        return finish(time_stock(load(), stock_rows, None, settings | {"batch": batch}, **flags))

    batch = transformers.default_data_collator([stock_rows[row] for row in range(settings["batch"])])
    for _ in range(repeats):
        yield "ours", lambda: finish(time_ours(words, settings, folder))
        yield "stock, same batch, bf16", lambda: stock(settings["batch"], bf16=True)
        yield "stock, defaults", lambda: stock(None)
    yield "ours, no worker", lambda: finish(time_ours([*words, "--dataloader_num_workers", "0"], settings, folder))
    yield "data-free", lambda: finish(time_data_free(load(), batch, settings))


def write_bert(folder: Path, config: Any, length: int) -> Any:
    """A BERT body of random weights, and a tokenizer for the words `w5`, `w6`, ..., which it returns."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{number}" for number in range(5, config.vocab_size))]
    tokenizer = Tokenizer(models.WordPiece({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    fast = transformers.BertTokenizerFast(tokenizer_object=tokenizer, model_max_length=length)
    fast.save_pretrained(folder)
    transformers.BertModel(config).save_pretrained(folder)
    return fast


def draw_texts(count: int, num_words: int, vocabulary: int) -> tuple[list[str], list[str]]:
    """Random words, and labels in turn."""
    numbers = np.random.default_rng(0).integers(5, vocabulary, (count, num_words))
    return [" ".join(f"w{n}" for n in row) for row in numbers], [LABELS[row % 4] for row in range(count)]


def measure_vit(scale: str, folder: Path, repeats: int) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """All weights of ViT-B/16."""
    import datasets

    settings, size = VIT[scale], VIT[scale]["size"]
    config = transformers.ViTConfig(num_labels=4, **settings["network"])
    processor = transformers.ViTImageProcessorPil(size={"height": size, "width": size})
    processor.save_pretrained(folder / "vit")
    transformers.ViTForImageClassification(config).save_pretrained(folder / "vit")
    rows = draw_photos(settings["rows"], settings["photo"])
    rows.to_parquet(folder / "train.parquet")
    rows.select(range(settings["batch"])).to_parquet(folder / "test.parquet")
    words = ["--task", "image-classification", "--train_file", f"{folder}/train.parquet"]
    words += ["--test_file", f"{folder}/test.parquet", "--model_name_or_path", f"{folder}/vit"]
    num_tokens = (size // config.patch_size) ** 2 + 1

    def finish(result: dict[str, Any]) -> dict[str, Any]:
        return result | describe_speed(result.pop("rate"), num_tokens, config)

    def load() -> Any:
        return transformers.AutoModelForImageClassification.from_pretrained(folder / "vit", num_labels=4)

    def stock(workers: int, steps: int, warm_up: int) -> dict[str, Any]:
        stored = datasets.Dataset.from_parquet(str(folder / "train.parquet"), cache_dir=str(folder / "cache"))
        transformed = stored.with_transform(build_stock_transform(processor, size))
        flags = {"bf16": True, "dataloader_num_workers": workers, "remove_unused_columns": False}
        changes = {"steps": steps, "warm_up": warm_up}
        return finish(time_stock(load(), transformed, stack_images, settings | changes, **flags))

    batch = {"pixel_values": torch.randn(settings["batch"], 3, size, size)}
    batch["labels"] = torch.arange(settings["batch"]) % 4
    for _ in range(repeats):
        yield "ours", lambda: finish(time_ours(words, settings, folder))
        yield "stock, 8 workers", lambda: stock(8 if scale == "gpu" else 1, settings["steps"], settings["warm_up"])
        yield "stock, no worker", lambda: stock(0, *((10, 2) if scale == "gpu" else (2, 1)))
    yield "data-free", lambda: finish(time_data_free(load(), batch, settings))


def draw_photos(count: int, size: tuple[int, int]) -> Any:
    """Rows of `image`, JPEG files with large shapes and some noise, and `label`, in turn."""
    import datasets
    from PIL import Image

    draw, files = np.random.default_rng(0), []
    for _ in range(count):
        coarse = Image.fromarray(draw.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize(
            size, Image.Resampling.BICUBIC
        )
        noisy = np.asarray(coarse, np.int16) + draw.integers(-12, 13, (size[1], size[0], 1), dtype=np.int16)
        buffer = io.BytesIO()
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
        files.append({"bytes": buffer.getvalue(), "path": None})
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    labels = [LABELS[row % 4] for row in range(count)]
    return datasets.Dataset.from_dict({"image": files, "label": labels}, features=features)


def build_stock_transform(processor: Any, size: int) -> Callable[[dict], dict]:
    """As in examples/pytorch/image-classification/run_image_classification.py of transformers."""
    from torchvision.transforms import Compose, Normalize, RandomHorizontalFlip, RandomResizedCrop, ToTensor

    normalize = Normalize(mean=processor.image_mean, std=processor.image_std)
    transform = Compose([RandomResizedCrop(size), RandomHorizontalFlip(), ToTensor(), normalize])

    def apply(rows: dict) -> dict:
        images = [transform(image.convert("RGB")) for image in rows["image"]]
        return {"pixel_values": images, "label": [LABELS.index(label) for label in rows["label"]]}

    return apply


def stack_images(rows: list[dict]) -> dict[str, torch.Tensor]:
    """The collator of that script."""
    pixels = torch.stack([row["pixel_values"] for row in rows])
    return {"pixel_values": pixels, "labels": torch.tensor([row["label"] for row in rows])}


# --- results

PARTS = {"llama": measure_llama, "bert": measure_bert, "vit": measure_vit}


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise TimeoutError after so many seconds.

    It may be raised inside of `no_grad` itself, after it turned gradients off: they are on again here.
    """
    gradients = torch.is_grad_enabled()

    def stop(signum: int, frame: Any) -> None:
        raise TimeoutError(f"not done after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(0.01, seconds))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        torch.set_grad_enabled(gradients)


def run_part(name: str, options: argparse.Namespace, deadline: float, write: Callable[[list], None]) -> None:
    """Every side of a part; what fails or takes too long leaves its error, what was not begun in time says so."""
    records: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, {"HFTL_CACHE": f"{folder}/cache"}):
        sides = PARTS[name](options.config, Path(folder), options.repeats)
        while True:
            start, record = time.monotonic(), {"side": "preparation", "status": "failed", "error": None}
            if records and start >= deadline:  # prepared; the sides that are left have their names
                records += [{"side": side, "status": "not run", "error": "not run: time"} for side, _ in sides]
                write(records)
                break
            try:
                with limited(deadline - start):
                    record["side"], measure = next(sides)
                    if torch.cuda.is_available():
                        torch.cuda.reset_peak_memory_stats()
                    record |= {"status": "completed"} | measure()
            except StopIteration:
                break
            except Exception as error:
                traceback.print_exc()
                record |= {"status": "failed", "error": f"{type(error).__name__}: {error}"[:2000]}
            records.append(record | {"seconds": time.monotonic() - start})
            print(describe(name, records[-1]), flush=True)
            write(records)
            release_memory()


def describe(part: str, record: dict[str, Any]) -> str:
    """One line."""
    shown = ("examples_per_second", "tokens_per_second", "mfu", "peak_memory_bytes", "seconds", "error")
    values = {key: f"{v:.4g}" if isinstance(v := record.get(key), float) else v for key in shown}
    return "; ".join([f"{part}, {record['side']}", *(f"{k} {v}" for k, v in values.items() if v is not None)])


def summarize(parts: dict[str, list]) -> dict[str, dict[str, float]]:
    """Median tokens a second of each side of each part."""
    rates: dict[str, dict[str, list[float]]] = {}
    for part, records in parts.items():
        for record in records:
            if record["status"] == "completed":
                rates.setdefault(part, {}).setdefault(record["side"], []).append(record["tokens_per_second"])
    return {part: {side: statistics.median(v) for side, v in sides.items()} for part, sides in rates.items()}


def main(words: list[str] | None = None) -> int:
    """Run the parts that there is time for; returns 1 if a side failed."""
    from hftl.run_record import describe_environment

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--config", choices=("gpu", "tiny"), default="gpu")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--max_seconds", type=float, default=300, help="for all parts together")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--commit", help="where this is a copy without its history")
    options = parser.parse_args(words)
    if options.config == "gpu" and not torch.cuda.is_available():
        parser.error("there is no CUDA device; --config tiny runs on a CPU")
    transformers.utils.logging.set_verbosity_error()
    environment, end = describe_environment(), time.monotonic() + options.max_seconds
    content: dict[str, Any] = {
        "date": date.today().isoformat(),
        "command": " ".join(["python benchmarks/gpu_throughput.py", *(sys.argv[1:] if words is None else words)]),
        "commit": options.commit or environment["git_commit"],
        "environment": environment,
        "settings": {"llama": LLAMA, "bert": BERT, "vit": VIT},
        "peak_flops": PEAK_FLOPS,
        "median_tokens_per_second": {},
        "parts": {},
    }
    for position, name in enumerate(options.parts):
        now = time.monotonic()
        deadline = now + (end - now) / (len(options.parts) - position)

        def write(records: list, name: str = name) -> None:
            content["parts"][name] = records
            content["median_tokens_per_second"] = summarize(content["parts"])
            write_results(content, options.output)

        run_part(name, options, deadline, write)
        release_memory()
    print(json.dumps(content["median_tokens_per_second"], indent=1))
    return int(any(r["status"] != "completed" for records in content["parts"].values() for r in records))


if __name__ == "__main__":
    sys.exit(main())
