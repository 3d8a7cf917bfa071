"""Which modules are adapted, and is everything else of the checkpoint left as it was?"""

import re

import peft
import pytest
import torch
from torch import nn

from hftl.config import ModelArguments
from hftl.errors import UserError
from hftl.models.adapters import build_adapter, check_adapter, find_targets
from hftl.models.head import head_modules
from hftl.models.modes import MODES, freeze_lower_layers
from hftl.models.targets import default_targets, describe_coverage, is_convolutional
from hftl.tasks import TASKS
from tests.networks import IMAGE_SIZE, NETWORKS, TEXT_NETWORKS, build_network

BERT_LAYER = ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"]
BERT_LAYER += ["intermediate.dense", "output.dense"]
BERT = [f"bert.encoder.layer.{layer}.{leaf}" for layer in (0, 1) for leaf in BERT_LAYER]
VIT_LAYER = ["attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj", "mlp.fc1", "mlp.fc2"]
BASIC, BOTTLENECK = ("layer.0", "layer.1"), ("layer.0", "layer.2")

# Of a checkpoint that has all weights of the body.
TARGETS = {
    "bert": [*BERT, "bert.pooler.dense"],
    "gpt2": [
        f"transformer.h.{layer}.{leaf}"
        for layer in (0, 1)
        for leaf in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    ],
    "vit": [f"vit.layers.{layer}.{leaf}" for layer in (0, 1) for leaf in VIT_LAYER],
    # As in ResNet-18 all weights but the shortcuts' are in 3x3 convolutions; the first one reads pixels.
    "resnet": [
        *[f"resnet.encoder.stages.{stage}.layers.0.{leaf}.convolution" for stage in (0, 1) for leaf in BASIC],
        "resnet.encoder.stages.1.layers.0.shortcut.convolution",
    ],
    # As in ResNet-50 the 1x1 convolutions hold most of them.
    "resnet-bottleneck": [
        f"resnet.encoder.stages.{stage}.layers.0.{leaf}.convolution"
        for stage in (0, 1)
        for leaf in ("shortcut", *BOTTLENECK)
    ],
    "convnext": [f"convnext.encoder.stages.{stage}.layers.0.pwconv{n}" for stage in (0, 1) for n in (1, 2)],
    "efficientnet": [
        *[f"efficientnet.encoder.blocks.{block}.expansion.expand_conv" for block in range(1, 7)],
        *[f"efficientnet.encoder.blocks.{block}.projection.project_conv" for block in range(7)],
        "efficientnet.encoder.top_conv",
    ],
}


def find_default_targets(network, new=()):
    return default_targets(network, head_modules(network, new))


def adapt(network, new=(), **settings):
    arguments = ModelArguments(lora_r=4, lora_alpha=8, **settings)
    return MODES["peft"].adapt(network, arguments, head_modules(network, new), None)


def build_batch(name):
    torch.manual_seed(3)
    if name in TEXT_NETWORKS:
        return {"input_ids": torch.randint(1, 40, (4, 9)), "attention_mask": torch.ones(4, 9, dtype=torch.long)}
    return {"pixel_values": torch.randn(4, 3, IMAGE_SIZE, IMAGE_SIZE)}


@pytest.mark.parametrize("name", TARGETS)
def test_the_modules_that_are_adapted_by_default(name):
    assert sorted(find_default_targets(build_network(name))) == sorted(TARGETS[name])


def test_a_pooler_that_is_new_is_trained_whole_instead_of_adapted():
    """A checkpoint of a masked language model has none: LoRA over random weights would be a random head."""
    new = ["bert.pooler.dense.weight", "bert.pooler.dense.bias"]
    assert find_default_targets(build_network("bert"), new) == BERT
    saved = adapt(build_network("bert"), new).peft_config["default"].modules_to_save
    assert saved == ["classifier", "bert.pooler.dense"]


@pytest.mark.parametrize("name", NETWORKS)
def test_no_head_and_no_grouped_convolution_is_adapted(name):
    network = build_network(name)
    heads = head_modules(network, [])
    targets = find_default_targets(network)
    assert targets
    for target in targets:
        module = network.get_submodule(target)
        assert not any(f"{target}.".startswith(f"{head}.") for head in heads)
        assert getattr(module, "groups", 1) == 1


def test_a_network_without_anything_to_adapt_is_refused():
    network = build_network("vit")
    network.vit = nn.Identity()
    with pytest.raises(UserError, match="ViTForImageClassification has neither linear layers nor convolutions"):
        find_default_targets(network)


def test_grouped_convolutions_are_left_out_and_linear_layers_beside_convolutions_taken_in():
    network = build_network("vit")
    network.vit = nn.Sequential(
        nn.Conv2d(3, 16, 3),  # reads pixels
        nn.Conv2d(16, 16, 3, groups=2),
        nn.Conv2d(16, 16, 3),
        nn.Linear(16, 16),
    )
    assert find_default_targets(network) == ["vit.2", "vit.3"]


@pytest.mark.parametrize("name", NETWORKS)
def test_convolutional_means_that_convolutions_hold_most_weights(name):
    assert is_convolutional(build_network(name)) == (name in {"resnet", "resnet-bottleneck", "efficientnet"})


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")  # peft 0.21 sets it for GPT-2 itself
@pytest.mark.parametrize("name", NETWORKS)
def test_training_moves_adapter_and_head_and_nothing_of_the_base(name):
    network = build_network(name)
    heads = head_modules(network, [])
    base = {key: value.clone() for key, value in network.state_dict().items()}
    with torch.inference_mode():
        untrained = network(**build_batch(name)).logits
    adapted = adapt(network)
    with torch.inference_mode():
        assert torch.equal(adapted.eval()(**build_batch(name)).logits, untrained)  # LoRA starts as no change
    before = {key: value.clone() for key, value in adapted.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=0.01)
    adapted.train()
    for _ in range(2):  # the first step moves B only: it starts at zero, and so does the gradient of A
        adapted(**build_batch(name)).logits.square().sum().backward()
        optimizer.step()
    moved = {key for key, value in adapted.state_dict().items() if not torch.equal(value, before[key])}
    head_keys = {f"base_model.model.{key}" for key in base if key.startswith(tuple(f"{head}." for head in heads))}
    trained = {re.sub(r"\.modules_to_save\.default", "", key) for key in moved if "modules_to_save" in key}
    assert trained == head_keys
    assert moved == {key for key in before if "lora_" in key or "modules_to_save" in key}
    state = adapted.state_dict()
    for key, value in base.items():
        module, _, leaf = f"base_model.model.{key}".rpartition(".")
        names = [f"{module}.{leaf}", f"{module}.base_layer.{leaf}"]
        names += [f"base_model.model.{head}.original_module{key[len(head) :]}" for head in heads]
        found = next(state[candidate] for candidate in names if candidate in state)
        assert torch.equal(found, value), key


@pytest.mark.parametrize("name", ["distilbert", "resnet"])
def test_the_head_is_saved_with_the_adapter(name, tmp_path):
    network = build_network(name)
    network.save_pretrained(tmp_path / "base")
    adapted = adapt(network)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05)
    expected = adapted.eval()(**build_batch(name)).logits
    adapted.save_pretrained(tmp_path / "adapter")
    base = type(network).from_pretrained(tmp_path / "base")
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    assert set(adapted.peft_config["default"].modules_to_save) == set(head_modules(build_network(name), []))
    torch.testing.assert_close(loaded(**build_batch(name)).logits, expected, atol=1e-6, rtol=0)
    assert not torch.allclose(expected, build_network(name)(**build_batch(name)).logits, atol=1e-2)


def test_rank_and_scale_are_those_asked_for():
    adapted = adapt(build_network("bert"), lora_dropout=0.25)
    layer = adapted.base_model.model.bert.encoder.layer[0].attention.self.query
    assert layer.lora_A["default"].weight.shape == (4, 16)
    assert layer.scaling["default"] == 2.0
    assert layer.lora_dropout["default"].p == 0.25


def test_named_targets_replace_the_default_ones():
    adapted = adapt(build_network("bert"), target_modules=["query", "value"])
    names = {name.rpartition(".lora_A")[0] for name, _ in adapted.named_modules() if name.endswith("lora_A")}
    leaves = {name.rsplit(".", 1)[-1] for name in names}
    assert len(names) == 4 and leaves == {"query", "value"}


def test_an_unknown_target_names_the_nearest():
    with pytest.raises(UserError, match="Unknown target module 'querry'. Did you mean 'query'"):
        adapt(build_network("bert"), target_modules=["querry"])
    with pytest.raises(UserError, match="Unknown target module 'c_atn'. Did you mean 'c_attn'"):
        adapt(build_network("gpt2"), target_modules=["c_atn"])


def test_an_unknown_adapter_names_the_valid_ones():
    network = build_network("bert")
    with pytest.raises(UserError, match="Unknown adapter 'lorra'. Did you mean 'lora'"):
        build_adapter(network, ModelArguments(adapter="lorra"), ["classifier"], None)


def test_a_head_over_a_bfloat16_body_is_float32_and_reads_it():
    network = build_network("distilbert").to(torch.bfloat16)
    adapted = adapt(network, dtype="bfloat16")
    trained = {p.dtype for p in adapted.parameters() if p.requires_grad}
    frozen = {p.dtype for p in adapted.parameters() if not p.requires_grad}
    assert (trained, frozen) == ({torch.float32}, {torch.bfloat16})
    logits = adapted(**build_batch("distilbert")).logits
    assert logits.dtype == torch.float32
    with torch.inference_mode():
        expected = build_network("distilbert")(**build_batch("distilbert")).logits
    torch.testing.assert_close(logits, expected, atol=0.1, rtol=0.1)


@pytest.mark.parametrize(
    ("name", "word", "expected"),
    [
        ("bert", "attention", {"query", "key", "value", "dense"}),
        ("bert", "mlp", {"dense"}),
        ("llama", "mlp", {"gate_proj", "up_proj", "down_proj"}),
        ("gpt2", "attention", {"c_attn", "c_proj"}),
        ("resnet", "conv", {"convolution"}),
        ("vit", "all-linear", {"q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"}),
        ("vit", r"vit\.layers\.1\..*fc\d", {"fc1", "fc2"}),
    ],
)
def test_words_and_expressions_for_targets(name, word, expected):
    network = build_network(name)
    targets = find_targets(network, ModelArguments(target_modules=[word]), head_modules(network, []))
    assert {target.rsplit(".", 1)[-1] for target in targets} == expected
    if name == "bert":  # each has two layers of each kind; the pooler belongs to neither
        assert len(targets) == {"attention": 8, "mlp": 4}[word]


def test_an_expression_that_is_none_is_refused():
    with pytest.raises(UserError, match=r"'\(' is no regular expression"):
        adapt(build_network("bert"), target_modules=["("])


def test_modules_that_the_method_cannot_change_are_refused():
    with pytest.raises(UserError, match="changes linear layers, but the modules to adapt of ResNet.* are convolution"):
        adapt(build_network("resnet"), adapter="miss")
    with pytest.raises(UserError, match="changes normalization layers, but ResNetForImageClassification has none"):
        adapt(build_network("resnet"), adapter="ln-tuning")
    with pytest.raises(UserError, match="changes normalization layers, but .* are linear layers"):
        adapt(build_network("bert"), adapter="ln-tuning", target_modules=["query"])


@pytest.mark.parametrize(
    ("adapter", "name", "modality", "message"),
    [
        ("prompt", "vit", "image", "prompt does not work with vit: it puts virtual tokens .* What does: lora,"),
        ("prefix", "deberta", "text", "prefix does not work with deberta-v2: .* prompt, p-tuning"),
        ("oft", "convnext", "image", "oft does not work with convnext"),
        ("lorra", "bert", "text", "Did you mean 'lora'"),
    ],
)
def test_an_adapter_that_a_network_cannot_have_is_refused_by_its_configuration(adapter, name, modality, message):
    with pytest.raises(UserError, match=message):
        check_adapter(
            ModelArguments(adapter=adapter), build_network(name).config, TASKS[f"{modality}-classification"]()
        )


def test_prompts_take_no_target_modules():
    args = ModelArguments(adapter="prompt", target_modules=["query"])
    with pytest.raises(UserError, match="adapts no modules: leave --target_modules out"):
        check_adapter(args, build_network("bert").config, TASKS["text-classification"]())


def test_more_settings_of_peft_go_through_and_unknown_ones_do_not():
    adapted = adapt(build_network("bert"), adapter_config={"use_rslora": True, "r": 2})
    layer = adapted.base_model.model.bert.encoder.layer[0].attention.self.query
    assert layer.lora_A["default"].weight.shape == (2, 16) and layer.use_rslora["default"]
    with pytest.raises(UserError, match="Unknown setting of LoraConfig 'use_rslroa'. Did you mean 'use_rslora'"):
        adapt(build_network("bert"), adapter_config={"use_rslroa": True})


def test_coverage_is_the_share_of_parameters_and_of_multiplications():
    network = build_network("bert")
    targets = find_default_targets(network)
    found = describe_coverage(network, targets, build_batch("bert"))
    weights = sum(network.get_submodule(name).weight.numel() for name in targets)
    assert found["share_of_parameters"] == weights / sum(p.numel() for p in network.parameters())
    # The layers read 4 x 9 words, the pooler 4 rows; beside them only the classifier multiplies, 16 x 3 a row.
    pooler = network.bert.pooler.dense.weight.numel()
    inside = 36 * (weights - pooler) + 4 * pooler
    assert found["share_of_flops"] == pytest.approx(inside / (inside + 4 * 16 * 3))
    assert found["num_modules"] == 13 and found["modules"] == ["dense", "key", "query", "value"]
    assert describe_coverage(network, [], build_batch("bert"))["share_of_flops"] == 0


def test_adalora_moves_its_ranks_over_the_steps_of_the_run():
    from transformers import TrainerControl, TrainerState, TrainingArguments

    from hftl.models.adapters import ADAPTERS

    adapted = adapt(build_network("bert"), adapter="adalora")
    callback, state = ADAPTERS["adalora"].callback(adapted), TrainerState(max_steps=20)
    hooks = (TrainingArguments(output_dir="unused", use_cpu=True), state, TrainerControl())
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=0.05)
    callback.on_train_begin(*hooks)
    for step in range(20):
        state.global_step = step
        adapted(**build_batch("bert")).logits.square().sum().backward()
        plain = [p.grad.clone() for name, p in adapted.named_parameters() if ".lora_A." in name]
        callback.on_pre_optimizer_step(*hooks)
        penalized = [p.grad for name, p in adapted.named_parameters() if ".lora_A." in name]
        assert any(not torch.equal(a, b) for a, b in zip(plain, penalized, strict=True))
        optimizer.step()
        callback.on_optimizer_step(*hooks)
        optimizer.zero_grad()
    ranks = [sum(pattern) for pattern in adapted.peft_config["default"].rank_pattern.values()]
    assert sum(ranks) == 4 * len(ranks)  # 6 at the start, 4 on average at the end, not the same everywhere
    assert len(set(ranks)) > 1


def test_the_lowest_layers_can_stay_as_they_are():
    network = build_network("bert")
    freeze_lower_layers(network, 1, ["classifier"])
    frozen = {name.split(".")[1] for name, p in network.named_parameters() if not p.requires_grad}
    assert frozen == {"embeddings", "encoder"}
    assert all(p.requires_grad == ("layer.1." in name) for name, p in network.bert.encoder.named_parameters())
    assert network.bert.pooler.dense.weight.requires_grad and network.classifier.weight.requires_grad
    with pytest.raises(UserError, match="--freeze_layers is 2, but bert.encoder.layer has 2 layers; leave one free"):
        freeze_lower_layers(build_network("bert"), 2, ["classifier"])
