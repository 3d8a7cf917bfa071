"""Tiny networks with a classification head, in memory, at random and without dropout: one of each kind of head."""

from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
VOCABULARY = 40
IMAGE_SIZE = 32

_TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
_NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
_LLAMA = {"num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2}
_VIT = {
    "image_size": IMAGE_SIZE,
    "patch_size": 8,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
_SWIN = {"image_size": IMAGE_SIZE, "patch_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2]}
_EFFICIENTNET = {
    "image_size": IMAGE_SIZE,
    "width_coefficient": 0.1,
    "depth_coefficient": 0.1,
    "hidden_dim": 128,
    "batch_norm_eps": 1e-12,  # with the usual 1e-3 the small activations of so narrow a network vanish
    "dropout_rate": 0.0,
    "drop_connect_rate": 0.0,
}

# Class of the network, class of its configuration, settings.
TEXT_NETWORKS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("BertForSequenceClassification", "BertConfig", _TEXT | _NO_DROPOUT),
    "distilbert": (
        "DistilBertForSequenceClassification",
        "DistilBertConfig",
        {"vocab_size": VOCABULARY, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "pad_token_id": 0}
        | {"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0, "max_position_embeddings": 64},
    ),
    "roberta": ("RobertaForSequenceClassification", "RobertaConfig", _TEXT | _NO_DROPOUT),
    "modernbert": (
        "ModernBertForSequenceClassification",
        "ModernBertConfig",
        _TEXT | {"bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2},
    ),
    "deberta": (
        "DebertaV2ForSequenceClassification",
        "DebertaV2Config",
        _TEXT | _NO_DROPOUT | {"pooler_hidden_size": 16, "pooler_dropout": 0.0, "cls_dropout": 0.0},
    ),
    "llama": ("LlamaForSequenceClassification", "LlamaConfig", _TEXT | _LLAMA),
    "gpt2": (
        "GPT2ForSequenceClassification",
        "GPT2Config",
        {"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "pad_token_id": 0}
        | {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": 1, "eos_token_id": 2},
    ),
}
IMAGE_NETWORKS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "vit": ("ViTForImageClassification", "ViTConfig", _VIT | _NO_DROPOUT),
    "resnet": (
        "ResNetForImageClassification",
        "ResNetConfig",
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
    ),
    "resnet-bottleneck": (
        "ResNetForImageClassification",
        "ResNetConfig",
        {"embedding_size": 8, "hidden_sizes": [32, 64], "depths": [1, 1], "layer_type": "bottleneck"},
    ),
    "convnext": (
        "ConvNextForImageClassification",
        "ConvNextConfig",
        {"num_stages": 2, "hidden_sizes": [8, 16], "depths": [1, 1], "patch_size": 2, "drop_path_rate": 0.0},
    ),
    "swin": (
        "SwinForImageClassification",
        "SwinConfig",
        _SWIN | _NO_DROPOUT | {"window_size": 2, "drop_path_rate": 0.0},
    ),
    "efficientnet": ("EfficientNetForImageClassification", "EfficientNetConfig", _EFFICIENTNET),
}
NETWORKS = TEXT_NETWORKS | IMAGE_NETWORKS
# With which only the adapters are tried: T5's head reads where the text ends, DINOv2's two vectors.
TEXT_ONLY_ADAPTED: dict[str, tuple[str, str, dict[str, Any]]] = {
    "t5": (
        "T5ForSequenceClassification",
        "T5Config",
        {"vocab_size": VOCABULARY, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
        | {"dropout_rate": 0.0, "pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0},
    ),
}
IMAGE_ONLY_ADAPTED: dict[str, tuple[str, str, dict[str, Any]]] = {
    "dinov2": (
        "Dinov2ForImageClassification",
        "Dinov2Config",
        _VIT | _NO_DROPOUT | {"mlp_ratio": 2, "layerscale_value": 1.0},
    ),
}


def build_network(name: str, *, problem_type: str = SINGLE, num_labels: int = 3, seed: int = 0, **changes: Any) -> Any:
    """A network of `NETWORKS` with weights large enough for its logits to depend on its inputs."""
    network_class, config_class, settings = (NETWORKS | TEXT_ONLY_ADAPTED | IMAGE_ONLY_ADAPTED)[name]
    config = getattr(transformers, config_class)(**settings | {"num_labels": num_labels} | changes)
    config.problem_type = problem_type
    torch.manual_seed(seed)
    network = getattr(transformers, network_class)(config)
    with (
        torch.no_grad()
    ):  # the usual standard deviation of 0.02 gives every input of so small a network the same logits
        for parameter in network.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0, 1.5 / (parameter.numel() / len(parameter)) ** 0.5)
        if name in IMAGE_NETWORKS:
            _set_batch_statistics(network)
    return network.eval()


def _set_batch_statistics(network: Any) -> None:
    """Those of one random batch, so that activations keep their size in evaluation mode."""
    layers = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = 1.0
    network.train()(torch.randn(16, 3, IMAGE_SIZE, IMAGE_SIZE))
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum


def build_tokenizer(padding_side: str = "right") -> transformers.PreTrainedTokenizerFast:
    """One token for each of the words `[PAD]`, `w1`, `w2`, ..."""
    vocabulary = {"[PAD]": 0, **{f"w{index}": index for index in range(1, VOCABULARY)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w1"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", padding_side=padding_side, model_max_length=32
    )


def run_plainly(network: Any, batches: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    """The logits of all batches, in evaluation mode."""
    with torch.inference_mode():
        return torch.cat([network.eval()(**batch).logits for batch in batches])
