"""Against formulas: 2 per parameter of a matrix product and token forward, and the same twice more backward."""

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch.utils.checkpoint import checkpoint
from transformers import BertConfig, BertForSequenceClassification

from hftl.cost.flops import count_flops

ROWS, TOKENS, HIDDEN, LAYERS, LABELS = 4, 8, 32, 3, 5


@pytest.fixture(params=["eager", "sdpa", "sdpa with dropout"])
def model(request):
    """Without dropout sdpa is one fused operator on the CPU; with it, torch takes the sum of its parts."""
    config = BertConfig(
        vocab_size=100,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        intermediate_size=4 * HIDDEN,
        attention_probs_dropout_prob=0.1 if "dropout" in request.param else 0.0,
        attn_implementation=request.param.split()[0],
        num_labels=LABELS,
    )
    return BertForSequenceClassification(config).train()


def _is_fused(model):
    return model.config._attn_implementation == "sdpa" and model.config.attention_probs_dropout_prob == 0


def _count_step(model, num_real_tokens=TOKENS):
    mask = torch.ones(ROWS, TOKENS, dtype=torch.long)
    mask[0, num_real_tokens:] = 0
    batch = {"input_ids": torch.ones_like(mask), "attention_mask": mask, "labels": torch.zeros(ROWS, dtype=torch.long)}
    return count_flops(lambda: model(**batch).loss.backward())


def _body(per_parameter):
    """The matrices of all layers (12 H^2 each) with every token."""
    return per_parameter * ROWS * TOKENS * LAYERS * 12 * HIDDEN**2


def _head(per_parameter):
    """Pooler and classifier, which see one token of each row."""
    return per_parameter * ROWS * (HIDDEN**2 + HIDDEN * LABELS)


def _attention(times_forward):
    """Scores, and their product with the values."""
    return times_forward * ROWS * LAYERS * 2 * (2 * TOKENS**2 * HIDDEN)


@pytest.mark.parametrize("num_real_tokens", [TOKENS, 3])
def test_full_fine_tuning_takes_6_per_parameter_and_token(model, num_real_tokens):
    attention = 3.5 if _is_fused(model) else 3  # the fused backward computes the scores again
    assert _count_step(model, num_real_tokens) == _body(6) + _head(6) + _attention(attention)


def test_training_the_head_alone_takes_2_per_parameter_of_the_body_and_token(model):
    model.bert.encoder.requires_grad_(False)
    model.bert.embeddings.requires_grad_(False)
    pooler_inputs_need_no_gradient = 2 * ROWS * HIDDEN**2
    assert _count_step(model) == _body(2) + _head(6) - pooler_inputs_need_no_gradient + _attention(1)


def test_lora_takes_4_per_parameter_of_the_frozen_body_and_token(model):
    lora = get_peft_model(
        model,
        LoraConfig(r=1, target_modules=["query", "key", "value", "dense"], exclude_modules=".*pooler.*"),
    )
    lora.classifier.requires_grad_(False)
    first_inputs_need_no_gradient = (
        3 * 2 * ROWS * TOKENS * (HIDDEN**2 + HIDDEN)
    )  # of queries, keys, values; A and base
    adapters = 6 * ROWS * TOKENS * LAYERS * (4 * 2 * HIDDEN + 2 * 5 * HIDDEN)  # rank x (inputs + outputs) each
    attention = 3.5 if _is_fused(model) else 3
    expected = _body(4) + _head(4) + adapters + _attention(attention) - first_inputs_need_no_gradient
    assert _count_step(lora) == expected


def test_attention_costs_the_same_forward_however_it_is_computed():
    query = torch.ones(2, 4, 16, 8)
    parts = count_flops(lambda: (query @ query.mT).softmax(-1) @ query)
    assert (
        count_flops(lambda: F.scaled_dot_product_attention(query, query, query)) == parts == 2 * 2 * 2 * 4 * 16**2 * 8
    )


def test_a_matrix_product_counts_multiplications_and_additions():
    a, b = torch.ones(3, 5), torch.ones(5, 7)
    assert count_flops(lambda: a @ b) == 2 * 3 * 5 * 7


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_a_convolution_takes_its_weights_for_each_output_pixel_and_twice_that_backward(groups):
    layer = torch.nn.Conv2d(8, 16, 3, padding=1, stride=2, groups=groups, bias=False)
    pixels = torch.ones(2, 8, 16, 16)
    forward = 2 * 2 * layer.weight.numel() * 8 * 8
    assert count_flops(lambda: layer(pixels)) == forward
    assert count_flops(lambda: layer(pixels).sum().backward()) == 2 * forward  # the image needs no gradient
    pixels.requires_grad_()
    assert count_flops(lambda: layer(pixels).sum().backward()) == 3 * forward
    layer.requires_grad_(False)
    assert count_flops(lambda: layer(pixels).sum().backward()) == 2 * forward


def test_a_transposed_convolution_takes_its_weights_for_each_input_pixel():
    layer = torch.nn.ConvTranspose2d(4, 6, 4, stride=2, padding=1, groups=2, bias=False)
    pixels = torch.ones(2, 4, 8, 8, requires_grad=True)
    forward = 2 * 2 * layer.weight.numel() * 8 * 8
    assert count_flops(lambda: layer(pixels).sum().backward()) == 3 * forward


def test_recomputed_activations_count_again():
    layers = torch.nn.Sequential(torch.nn.Linear(16, 16, bias=False), torch.nn.Linear(16, 16, bias=False))
    inputs, product = torch.ones(4, 16, requires_grad=True), 2 * 4 * 16 * 16
    assert count_flops(lambda: layers(inputs).sum().backward()) == 6 * product
    recomputed = count_flops(lambda: checkpoint(layers, inputs, use_reentrant=False).sum().backward())
    assert recomputed == 7 * product  # the last layer's output is not needed again


def test_the_function_runs_once_and_its_error_comes_through():
    calls = []
    assert count_flops(lambda: calls.append(1)) == 0
    assert calls == [1]
    with pytest.raises(ZeroDivisionError):
        count_flops(lambda: 1 / 0)


@pytest.mark.parametrize("kind", ["nf4", "int8", "int8 with outliers"])
@pytest.mark.filterwarnings("ignore:MatMul8bitLt")
def test_products_with_quantized_weights_count_like_the_products_that_they_replace(kind):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    plain = torch.nn.Linear(64, 96, bias=False)
    if kind == "nf4":
        quantized = bitsandbytes.nn.Linear4bit(64, 96, bias=False, quant_type="nf4", compute_dtype=torch.float32)
        quantized.weight = bitsandbytes.nn.Params4bit(plain.weight.data, requires_grad=False, quant_type="nf4")
    else:
        threshold = 6.0 if "outliers" in kind else 0.0
        quantized = bitsandbytes.nn.Linear8bitLt(64, 96, bias=False, has_fp16_weights=False, threshold=threshold)
        quantized.load_state_dict(plain.state_dict())
    quantized.to("cpu")
    inputs = torch.randn(4, 8, 64, requires_grad=True)
    plain.requires_grad_(False)
    wanted = count_flops(lambda: plain(inputs).sum().backward())
    assert wanted == 2 * (2 * 4 * 8 * 64 * 96)  # forward, and backward to the inputs
    assert count_flops(lambda: quantized(inputs).sum().backward()) == wanted
