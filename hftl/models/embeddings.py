"""Does the embedding have a row for every token, and who trains and saves those that were added?

A tokenizer may know more tokens than its checkpoint: someone has added special ones. A number without a row ends in an
index error, on a GPU in a failed assertion without a place.
"""

import functools
import logging
from collections.abc import Sequence
from typing import Any

from hftl.errors import UserError

logger = logging.getLogger(__name__)


def count_rows(config: Any) -> int | None:
    """Rows of the token embedding that a configuration describes; None for images."""
    return getattr(config.get_text_config(), "vocab_size", None)


def add_rows(network: Any, num_rows: int) -> range:
    """Widen the embedding, and the output layer of a language model, to `num_rows`; gives the numbers of the new ones.

    They start at the mean of the others, as transformers does it (Hewitt 2021,
    https://nlp.stanford.edu/~johnhew/vocab-expansion.html), up to a millionth of their spread.
    """
    present = count_rows(network.config)
    network.resize_token_embeddings(num_rows, mean_resizing=True)
    logger.info(
        "The tokenizer knows %d tokens more than the checkpoint. They get rows at the mean of the others.",
        num_rows - present,
    )
    return range(present, num_rows)


def check_tokens(network: Any, num_tokens: int | None) -> None:
    """Refuse a network without a row for each token.

    Args:
        network: loaded.
        num_tokens: that the tokenizer can write; None for images.
    """
    if num_tokens is not None and (rows := count_rows(network.config)) is not None and rows < num_tokens:
        raise UserError(
            f"The tokenizer writes {num_tokens} different tokens, but the embedding has {rows} rows. "
            "Leave vocab_size out of --config_overrides, or make it as large."
        )


def find_trainable_rows(network: Any, new_tokens: Sequence[int]) -> dict[str, list[int]]:
    """Module -> new rows, as peft's `trainable_token_indices`; empty where peft 0.21 would miss some of their uses.

    A tied output layer follows its embedding. In T5 the encoder has the same embedding under a name of its own, and
    peft replaces it under one.
    """
    if not new_tokens:
        return {}
    embedding, output = network.get_input_embeddings(), network.get_output_embeddings()
    everywhere = network.named_modules(remove_duplicate=False)
    owners = [m for _, m in everywhere if getattr(m, "weight", None) is embedding.weight and m is not output]
    if len(owners) > 1:
        return {}
    names = {module: name for name, module in network.named_modules()}
    is_tied = output is None or output.weight is embedding.weight
    return {names[module]: list(new_tokens) for module in ([embedding] if is_tied else [embedding, output])}


def keep_rows_when_saved(adapted: Any) -> None:
    """Let `save_pretrained` of an adapted network write the whole embedding, unless peft keeps its new rows apart.

    By default peft compares with the base's configuration, which it does not find offline for a Hub id; and where it
    does, it saves the whole embedding beside the rows.
    """
    is_apart = bool(getattr(adapted.peft_config["default"], "trainable_token_indices", None))
    adapted.save_pretrained = functools.partial(adapted.save_pretrained, save_embedding_layers=not is_apart)


def warn_of_still_rows(network: Any, new_tokens: Sequence[int]) -> None:
    """Say so when nothing trains the new rows of a network that is frozen or wrapped as it will be trained."""
    trained = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    is_trained = any("trainable_tokens_delta" in name for name in trained)
    if new_tokens and not (is_trained or network.get_input_embeddings().weight.requires_grad):
        logger.warning(
            "The %d tokens that the tokenizer adds are not trained here: they all read as the mean of the others. "
            "--mode full without --freeze_layers trains them, and so does --adapter lora, except in T5.",
            len(new_tokens),
        )
