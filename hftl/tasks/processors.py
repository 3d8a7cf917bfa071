"""Tokenizers and image processors: loaded, with errors that say what to do, and rows prepared by them once."""

import errno
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
from huggingface_hub import errors as hub
from safetensors import SafetensorError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from hftl.assets import cache_dir, is_bundled, resolve_model
from hftl.errors import UserError

# What the Hub's client says -> what to do. Gated and missing revisions are special cases of a missing repository.
HUB_FAILURES: tuple[tuple[tuple[type[Exception], ...], str], ...] = (
    ((hub.GatedRepoError,), "is gated. Ask for access on its page and log in with `hf auth login`."),
    ((hub.RevisionNotFoundError,), "has no such revision. Correct --model_revision."),
    (
        (hub.RepositoryNotFoundError, hub.HFValidationError),
        "is neither a folder here nor a public model of the Hub. Check the spelling; a private one also needs "
        "`hf auth login`.",
    ),
    (
        (hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled, ConnectionError),
        "is not a folder, and as a Hub id it is not in the cache and cannot be downloaded: there is no network, or "
        "HF_HUB_OFFLINE is set. Load it once with a network, or name a folder or bundled:minilm-l6.",
    ),
)


@contextmanager
def explained_loading(name: str) -> Iterator[None]:
    """Turn what goes wrong while a checkpoint's files are loaded into an error that says what to do.

    Args:
        name: Hub id, folder or bundled:NAME.
    """
    path = Path(name)
    is_local = path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or path.is_file()
    if is_local and not is_bundled(name) and not path.is_dir():
        raise UserError(f"There is no checkpoint folder {name} (working folder: {Path.cwd()}).")
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.ENOMEM):
            raise
        raise UserError(_explain_loading(name, error)) from error


def _explain_loading(name: str, error: BaseException) -> str:
    chain: list[BaseException] = [error]
    while cause := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(cause)
    for kinds, advice in HUB_FAILURES:
        if any(isinstance(link, kinds) for link in chain):
            return f"The model {name!r} {advice}"
    if "file named model.safetensors" in str(error):
        return (
            f"{name} has no model.safetensors. Weights in pickle files (pytorch_model.bin) can run code when they are "
            "loaded, so hftl does not: convert them once, with `save_pretrained` of the loaded model."
        )
    if "trust_remote_code" in str(error):
        return f"{name} needs code of its own, which hftl never runs. Name a checkpoint that transformers knows."
    return f"Cannot load {name}: {error}"


def load_tokenizer(source: str, revision: str, max_length: int | None, *, default_length: int) -> Any:
    """A tokenizer that can pad, and cuts a text after `max_length` tokens.

    Args:
        source: Hub id, folder or bundled:NAME.
        revision: Hub revision.
        max_length: as asked for; None: `default_length`, or less where the tokenizer says so. `models.length` sees
            to it that the network reads as many.
        default_length: tokens.

    Raises:
        UserError: there is none.
    """
    with explained_loading(source):
        tokenizer = AutoTokenizer.from_pretrained(resolve_model(source), revision=revision, trust_remote_code=False)
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # what transformers 5.23 makes of missing files
        raise UserError(f"{source} has no tokenizer files, so every text would read the same. Add them to it.")
    if tokenizer.pad_token is None:  # GPT-2, Llama: padding is masked, so any token will do
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.model_max_length = max_length or min(tokenizer.model_max_length, default_length)
    return tokenizer


def train_tokenizer(tokenizer: Any, texts: Iterable[str], vocab_size: int, num_texts: int) -> Any:
    """A tokenizer of the same kind made from texts, which cuts them where the other one does."""
    trained = tokenizer.train_new_from_iterator(texts, vocab_size, length=num_texts)
    trained.model_max_length = tokenizer.model_max_length
    return trained


def count_tokens(processor: Any) -> int | None:
    """How many rows an embedding needs for every number that a tokenizer can write; None for image processors."""
    if not isinstance(processor, PreTrainedTokenizerBase):
        return None
    return 1 + max(processor.get_vocab().values())  # not len(): numbers may have gaps


def widen_vocabulary(config: Any, tokenizer: Any) -> None:
    """Let a configuration ask for a row for each token; a checkpoint that has more, as filling, keeps them."""
    text = config.get_text_config()
    if getattr(text, "vocab_size", None) is not None:
        text.vocab_size = max(text.vocab_size, count_tokens(tokenizer))


def describe_windows(rows: dict[str, datasets.Dataset]) -> dict[str, Any]:
    """What the run record says of rows that are read in windows, so that none is cut."""
    counts = {
        split: {"num_rows": len(part), "num_tokens": sum(part["length"][:]), "num_cut": 0}
        for split, part in rows.items()
    }
    return {"tokens": counts}


def map_cached(
    dataset: datasets.Dataset, function: Callable, key: dict[str, Any], *, batch_size: int = 1000, description: str
) -> datasets.Dataset:
    """`dataset.map` in batches, stored in our cache under a key of content and preprocessing.

    The library's own key pickles the function and the tokenizer, whose state changes with use, and is absent for
    data in memory. Ours is what decides the result: the rows, the processor, the settings and the library versions.

    Args:
        dataset: rows with canonical columns; only the columns that `function` returns are kept.
        function: batched function, columns -> columns.
        key: everything that changes the result.
        batch_size: rows a call.
        description: shown on the progress bar.
    """
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    folder = Path(cache_dir()) / "prepared"
    folder.mkdir(parents=True, exist_ok=True)
    return dataset.map(
        function,
        batched=True,
        batch_size=batch_size,
        remove_columns=dataset.column_names,
        cache_file_name=str(folder / f"{digest}.arrow"),
        load_from_cache_file=True,
        new_fingerprint=digest,
        desc=description,
    )
