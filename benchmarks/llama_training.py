"""A Llama of random weights that is built in float32, bfloat16 or nf4, and one step of training it, as hftl does both.

`qlora_70b.py` measures it. What hftl offers is used and not copied: its nf4 configuration, its adapter on every linear
layer of the body, Trainer's optimizer for an `--optim` flag; around them what Trainer does with `--bf16` and
`--gradient_checkpointing`: autocast, non-reentrant checkpoints, gradients clipped to a norm of 1. What is added is a
loss over chunks of the sequence. transformers, peft and hftl are imported where they are used, not for `--plan`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from memory_plan import LOSS_CHUNK, MAX_LENGTH, Case, Shape
from torch import nn
from torch.utils.checkpoint import checkpoint


def build_network(shape: Shape, mode: str, device: torch.device, seed: int = 0) -> Any:
    """A `LlamaForCausalLM` of random weights, all frozen, put on `device` one weight after the other.

    Args:
        shape: its sizes.
        mode: full (float32), lora (bfloat16) or qlora (linear layers of the body in nf4, the rest bfloat16).
        device: where weights are drawn and quantized.
        seed: of the weights.
    """
    from transformers import AutoModelForCausalLM, LlamaConfig
    from transformers.quantizers import AutoHfQuantizer

    from hftl.models.quantization import build_quantization

    config = LlamaConfig(
        num_hidden_layers=shape.num_layers,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        vocab_size=shape.vocab,
        max_position_embeddings=MAX_LENGTH,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
        tie_word_embeddings=False,
        use_cache=False,
    )
    dtype = torch.float32 if mode == "full" else torch.bfloat16
    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    if mode != "qlora":
        fill_network(network, dtype, device, seed)
        return network
    # What `from_pretrained` does with a quantization configuration, before and after it has loaded the weights.
    quantizer = AutoHfQuantizer.from_config(build_quantization("nf4", ["lm_head"]), pre_quantized=False)
    quantizer.preprocess_model(network, device_map=None)
    fill_network(network, dtype, device, seed)
    quantizer.postprocess_model(network)
    network.hf_quantizer = quantizer
    return network


def fill_network(network: Any, dtype: torch.dtype, device: torch.device, seed: int) -> None:
    """Replace the parameters on the meta device: norms by ones, matrices by N(0, 0.02), where asked for in nf4.

    What writes into the residual stream is scaled by 1 / sqrt(2 L), so that its sum does not grow with the depth
    (Radford et al. 2019, section 2.3). Only one matrix at a time exists without being quantized.
    """
    generator = torch.Generator(device).manual_seed(seed)
    residual = (2 * network.config.num_hidden_layers) ** -0.5
    for name, empty in list(network.named_parameters()):
        layer = network.get_submodule(name.rpartition(".")[0])
        if empty.ndim == 1:
            layer.weight = nn.Parameter(torch.ones(empty.shape, dtype=dtype, device=device), requires_grad=False)
            continue
        scale = residual if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
        layer.weight = _freeze(draw_weight(empty.shape, 0.02 * scale, dtype, generator), empty)
    # Its table is no parameter: made again, on the device.
    network.model.rotary_emb = type(network.model.rotary_emb)(network.config).to(device)


def draw_weight(size: torch.Size, std: float, dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    """[outputs, inputs], on the device of the generator."""
    return torch.empty(size, dtype=dtype, device=generator.device).normal_(0, std, generator=generator)


def _freeze(weight: torch.Tensor, empty: nn.Parameter) -> nn.Parameter:
    if type(empty) is nn.Parameter:
        return nn.Parameter(weight, requires_grad=False)
    # `Params4bit` quantizes when it is moved to a device (transformers 5.17 to 5.23, `Bnb4bitQuantize`).
    return type(empty)(weight, requires_grad=False, **empty.__dict__).to(weight.device)


def chunked_cross_entropy(
    hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, chunk: int = LOSS_CHUNK
) -> torch.Tensor:
    """Mean cross-entropy of the vocabulary head; logits of `chunk` tokens exist at a time and are computed twice.

    Args:
        hidden: [T, D].
        weight: [V, D].
        labels: [T].
        chunk: tokens.
    """
    pairs = zip(hidden.split(chunk), labels.split(chunk), strict=True)
    sums = [
        checkpoint(_sum_losses, part, weight, target, use_reentrant=False, preserve_rng_state=False)
        for part, target in pairs
    ]
    return torch.stack(sums).sum() / len(labels)


def _sum_losses(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(F.linear(hidden, weight).float(), labels, reduction="sum")


def compute_loss(network: Any, input_ids: torch.Tensor) -> torch.Tensor:
    """Of predicting each token of [1, S] from those before it."""
    hidden = network.model(input_ids=input_ids, use_cache=False).last_hidden_state  # [1, S, D]
    return chunked_cross_entropy(hidden[0, :-1], network.lm_head.weight, input_ids[0, 1:])


@dataclass
class Trainee:
    """A network with what is trained in it. `network` is the Llama itself, with adapters in its layers if any."""

    network: Any
    optimizer: torch.optim.Optimizer
    device: torch.device
    vocab: int

    def trained(self) -> list[nn.Parameter]:
        """The parameters that the optimizer changes."""
        return [parameter for parameter in self.network.parameters() if parameter.requires_grad]

    def has_states(self) -> bool:
        """Whether the optimizer holds all that it will: it makes its states in its first step."""
        return all(self.optimizer.state.get(parameter) for parameter in self.trained())


def build_trainee(shape: Shape, case: Case, device: torch.device, *, checkpointing: bool = True) -> Trainee:
    """The network of a case, adapted by hftl, ready to train, with checkpoints or without."""
    from transformers import Trainer, TrainingArguments

    from hftl.config import ModelArguments
    from hftl.models.adapters import build_adapter

    network = build_network(shape, case.mode, device)
    if case.mode == "full":
        network.requires_grad_(True)
    else:
        args = ModelArguments(mode="peft", quantization="nf4" if case.mode == "qlora" else "none")
        build_adapter(network, args, [], "CAUSAL_LM")
    network.train()
    if checkpointing:
        network.gradient_checkpointing_enable({"use_reentrant": False})
    rate = shape.learning_rate / (10 if case.mode == "full" else 1)
    settings = TrainingArguments(output_dir="unused", optim=case.optim, learning_rate=rate, report_to="none")
    optimizer_class, options = Trainer.get_optimizer_cls_and_kwargs(settings)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    return Trainee(network, optimizer_class(trained, **options), device, shape.vocab)


def compute_stock_loss(network: Any, input_ids: torch.Tensor) -> torch.Tensor:
    """The same by the network itself, with the float32 logits of all tokens at a time."""
    return network(input_ids=input_ids, labels=input_ids, use_cache=False).loss


def train_step(
    trainee: Trainee,
    input_ids: torch.Tensor,
    loss_function: Callable[[Any, torch.Tensor], torch.Tensor] = compute_loss,
) -> float:
    """One step as Trainer takes it with `--bf16`; returns the loss before it, when the device is done."""
    with torch.autocast(trainee.device.type, dtype=torch.bfloat16):
        loss = loss_function(trainee.network, input_ids)
    loss.backward()
    nn.utils.clip_grad_norm_(trainee.trained(), 1.0)
    trainee.optimizer.step()
    trainee.optimizer.zero_grad(set_to_none=True)
    return loss.item()


def draw_batch(trainee: Trainee, length: int) -> torch.Tensor:
    """[1, length] random tokens, the same every time."""
    generator = torch.Generator().manual_seed(length)
    return torch.randint(trainee.vocab, (1, length), generator=generator).to(trainee.device)
