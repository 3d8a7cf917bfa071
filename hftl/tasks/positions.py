"""How many tokens does a network read? Its configuration and its table of positions say so, whatever its tokenizer."""

from typing import Any

import torch
import transformers
from torch import nn

NAMES = ("max_position_embeddings", "max_encoder_position_embeddings", "max_seq_len")  # the two last of LED and MPT


def count_positions(network: nn.Module) -> int | None:
    """Tokens of a text that a network has positions for; None where nothing limits them, as with relative positions.

    RoBERTa and its kin count from behind the number of the padding token, which the table of positions knows.
    """
    config = network.config.get_text_config()
    rows = next((value for name in NAMES if (value := getattr(config, name, None))), None)
    if not isinstance(rows, int) or rows < 0 or not getattr(config, "position_biased_input", True):  # XLNet; DeBERTa
        return None
    tables = [module for name, module in network.named_modules() if "position" in name.rpartition(".")[2]]
    offsets = [
        1 + module.padding_idx
        for module in tables
        if getattr(module, "padding_idx", None) is not None and len(getattr(module, "weight", ())) == rows
    ]
    return rows - max(offsets, default=0)


def count_free_positions(network: nn.Module) -> int | None:
    """The same without those that an adapter fills with its virtual tokens."""
    positions, adapters = count_positions(network), getattr(network, "peft_config", None) or {}
    virtual = sum(getattr(config, "num_virtual_tokens", None) or 0 for config in adapters.values())
    return None if positions is None else positions - virtual


def build_empty(auto_model: str, config: Any) -> transformers.PreTrainedModel:
    """The network that a configuration describes, without memory for its weights."""
    with torch.device("meta"):
        return getattr(transformers, auto_model).from_config(config, trust_remote_code=False)
