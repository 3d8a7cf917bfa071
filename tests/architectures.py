"""Tiny checkpoints of the architectures that transformers lists for a task, made from their configuration classes.

No list of architectures is kept: what the installed version lists is built. Sizes are chosen by the names that
configurations give them.
"""

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from hftl.tasks import TASKS
from tests import tiny

WIDTH, POSITIONS, IMAGE_SIZE = 32, 64, 32
MAX_PARAMETERS = 3_000_000


class NotTiny(Exception):
    """The settings here give no network, or one that would take minutes."""


# Name of a setting -> its tiny value. A list keeps its length, and each entry gets the value.
_SIZES: tuple[tuple[int, str], ...] = (
    (
        WIDTH,
        "hidden_size d_model n_embd dim embed_dim embedding_size d_embed emb_dim hidden_dim "
        "word_embed_proj_dim d_inner pooler_hidden_size classifier_proj_size decoder_hidden_size "
        "encoder_hidden_dim input_embedding_size output_embedding_size n_embed embedding_dim hidden_sizes "
        "embed_dims neck_hidden_sizes d_latents kv_hidden_size bottleneck_size intra_bottleneck_size "
        "moe_intermediate_size shared_expert_intermediate_size expert_hidden_size entity_emb_size lru_width "
        "hash_hidden decoder_attention_dim attention_hidden_size hidden_size_per_layer_input "
        "shared_intermediate_size moe_latent_size rank_hidden projection_dim true_hidden_size fpn_hidden_size "
        "fusion_hidden_size mamba_d_inner n_inner decoder_ffn_dim encoder_ffn_dim ffn_dim intermediate_size "
        "d_ff intermediate_size_mlp dim_feedforward inner_size ffn_hidden_size "
        "moe_shared_expert_intermediate_size",
    ),
    (
        2,
        "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_decoder_layers "
        "num_blocks num_hidden_layers_per_stage num_attention_heads n_head n_heads num_heads "
        "encoder_attention_heads decoder_attention_heads num_key_value_heads num_experts_per_tok "
        "num_experts_per_token moe_k moe_topk top_k_experts attention_heads linear_num_key_heads "
        "linear_num_value_heads mamba_n_heads num_self_attention_heads n_groups num_cross_attention_heads "
        "num_encoder_attention_heads num_decoder_attention_heads text_layers depths sliding_window_pattern "
        "num_encoder_layers num_swa_attention_heads num_local_heads num_kv_heads n_kv_heads "
        "num_global_key_value_heads num_hash_functions num_blocks_per_stage",
    ),
    (4, "num_experts num_local_experts n_routed_experts moe_num_experts q_lora_rank"),
    (
        1,
        "num_self_attends_per_block num_blocks_encoder n_shared_experts num_shared_experts n_group topk_group "
        "first_k_dense_replace num_nextn_predict_layers num_zero_heads",
    ),
    (
        16,
        "head_dim d_kv qk_nope_head_dim qk_rope_head_dim v_head_dim kv_lora_rank linear_key_head_dim "
        "linear_value_head_dim mamba_d_state state_size mamba_head_dim attention_head_dim embedding_head_dim "
        "global_head_dim",
    ),
    (
        POSITIONS,
        "max_position_embeddings n_positions max_seq_len max_source_positions max_target_positions "
        "max_encoder_position_embeddings max_decoder_position_embeddings max_sequence_length sliding_window",
    ),
    (IMAGE_SIZE, "image_size"),
    (8, "patch_size"),
    (100, "vocab_size"),
)
SIZES = {name: value for value, names in _SIZES for name in names.split()}


SPECIAL: dict[str, dict[str, Any]] = {
    "GPTNeoConfig": {"attention_types": [[["global", "local"], 1]]},
    "ReformerConfig": {"axial_pos_embds_dim": (16, 16), "axial_pos_shape": (8, 8), "attn_layers": ["local", "lsh"]},
    "GPTJConfig": {"rotary_dim": 8},
    "CodeGenConfig": {"rotary_dim": 8},
    "LEDConfig": {"attention_window": 8},
    "LongformerConfig": {"attention_window": 8},
    "EfficientNetConfig": {"hidden_dim": 128, "width_coefficient": 0.1, "depth_coefficient": 0.1},
    "MobileNetV1Config": {"depth_multiplier": 0.25},
    "SwinConfig": {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "patch_size": 4, "window_size": 2},
    "DonutSwinConfig": {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "patch_size": 4, "window_size": 2},
    "Swinv2Config": {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "patch_size": 4, "window_size": 2},
    "ConvNextConfig": {"num_stages": 2, "hidden_sizes": [8, 16], "depths": [1, 1], "patch_size": 2},
    "ConvNextV2Config": {"num_stages": 2, "hidden_sizes": [8, 16], "depths": [1, 1], "patch_size": 2},
    "Mamba2Config": {"num_heads": 4},
    "BambaConfig": {"attn_layer_indices": [1]},
    "JambaConfig": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "GraniteMoeHybridConfig": {"layer_types": ["mamba", "attention"]},
    "RecurrentGemmaConfig": {"block_types": ["recurrent", "attention"]},
    "Qwen3NextConfig": {"layer_types": ["linear_attention", "full_attention"]},
    "Qwen3_5TextConfig": {"layer_types": ["linear_attention", "full_attention"]},
    "Lfm3Config": {"layer_types": ["conv", "full_attention"]},
    "XmodConfig": {"default_language": "en_XX"},
    "BitConfig": {"num_groups": 2},
    "LukeConfig": {"entity_vocab_size": 10},
    "RoCBertConfig": {"shape_vocab_size": 10, "pronunciation_vocab_size": 10},
    "ZambaConfig": {"layers_block_type": ["mamba", "hybrid"]},
    "Zamba2Config": {"layers_block_type": ["mamba", "hybrid"]},
}


def list_architectures(task: str) -> dict[str, type]:
    """Names of the classes that the task's Auto class makes -> the class of their configuration."""
    mapping = getattr(transformers, TASKS[task].auto_model)._model_mapping
    found = {}
    for config_class in mapping:
        classes = mapping[config_class]
        for network_class in classes if isinstance(classes, (list, tuple)) else [classes]:
            found.setdefault(network_class.__name__, config_class)
    return found


def shrink(config_class: type, **changes: Any) -> dict[str, Any]:
    """Settings with which a configuration is of a tiny network."""
    names = (
        {f.name: f.default for f in dataclasses.fields(config_class)} if dataclasses.is_dataclass(config_class) else {}
    )
    names |= {n: p.default for n, p in inspect.signature(config_class.__init__).parameters.items()}
    settings = {}
    for name, value in SIZES.items():
        if name not in names:
            continue
        default = names[name]
        settings[name] = [value] * len(default) if isinstance(default, (list, tuple)) else value
    for name, part in (getattr(config_class, "sub_configs", None) or {}).items():
        if hasattr(part, "model_type") and part is not transformers.AutoConfig:
            settings[name] = shrink(part)
    for name in [n for n in names if n.endswith("_token_id")]:  # of a vocabulary of another size
        settings[name] = {"pad_token_id": 0, "bos_token_id": 1}.get(name, 2)
    return settings | SPECIAL.get(config_class.__name__, {}) | changes


def write_checkpoint(folder: Path, task: str, name: str) -> Path:
    """A tiny checkpoint of one architecture, at random, with what reads its rows beside it.

    Raises:
        NotTiny: the sizes of its configuration have names that are not known here.
    """
    try:
        network = _build(list_architectures(task)[name], name)
    except Exception as error:  # of the class itself, before hftl has seen it
        raise NotTiny(f"{name}: {type(error).__name__}: {error}") from error
    network.save_pretrained(folder)
    if TASKS[task].modality == "image":
        size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
        transformers.ViTImageProcessorPil(size=size).save_pretrained(folder)
    else:
        _build_tokenizer().save_pretrained(folder)
    return folder


def _build(config_class: type, name: str) -> transformers.PreTrainedModel:
    config = config_class(**shrink(config_class, architectures=[name]))
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in getattr(transformers, name)(config).parameters())
    if size > MAX_PARAMETERS:
        raise NotTiny(f"{size} parameters")
    torch.manual_seed(0)
    return getattr(transformers, name)(config)


def _build_tokenizer() -> transformers.PreTrainedTokenizerFast:
    special = ["[PAD]", "[BOS]", "[EOS]", "[UNK]", "[MASK]"]
    words = dict.fromkeys([*special, *tiny.FILLER_WORDS, *(word for group in tiny.CLASS_WORDS for word in group)])
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[BOS] $A [EOS]", pair="[BOS] $A [EOS] $B [EOS]", special_tokens=[("[BOS]", 1), ("[EOS]", 2)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **{f"{kind}_token": f"[{kind.upper()}]" for kind in ("pad", "bos", "eos", "unk", "mask")},
        cls_token="[BOS]",
        sep_token="[EOS]",
    )
