"""EVA: does each layer start in the directions in which its inputs vary, with ranks moved to where that says most?"""

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file

from hftl.config import ModelArguments, parse_args
from hftl.models import eva
from hftl.models.head import head_modules
from hftl.models.modes import MODES
from hftl.run_record import RunRecord
from hftl.training.run import run
from tests import tiny
from tests.networks import IMAGE_SIZE, build_network

pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")  # peft, of GPT-2


def build_batches(name):
    """Three batches; of texts a third of the positions is padding."""
    generator = torch.Generator().manual_seed(5)
    if name == "vit":
        return [{"pixel_values": torch.randn(4, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator)} for _ in range(3)]
    mask = (torch.arange(9) < 6).long().expand(8, 9)
    words = [torch.randint(3, 40, (8, 9), generator=generator) for _ in range(3)]
    return [{"input_ids": rows * mask, "attention_mask": mask} for rows in words]


def adapt(name, **settings):
    network = build_network(name)
    args = ModelArguments(**{"lora_r": 4, "lora_alpha": 4, "adapter": "eva"} | settings)
    return MODES["peft"].adapt(network, args, head_modules(network, []), None)


def initialize(name, **settings):
    adapted = adapt(name, **settings)
    eva.initialize_eva(adapted, lambda: build_batches(name))
    return adapted


def list_layers(adapted):
    return {
        name.removeprefix("base_model.model."): module
        for name, module in adapted.named_modules()
        if isinstance(module, peft.tuners.lora.LoraLayer)
    }


def capture_inputs(name, layer):
    """What a layer of the plain network reads, without padding."""
    network, seen = build_network(name), []
    network.get_submodule(layer).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    for batch in build_batches(name):
        with torch.inference_mode():
            network(**batch)
        if "attention_mask" in batch and seen[-1].ndim == 3:
            seen[-1] = seen[-1][batch["attention_mask"].bool()]
    return torch.cat([inputs.reshape(-1, inputs.shape[-1]) for inputs in seen])


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("bert", "bert.encoder.layer.1.attention.self.value"),
        ("bert", "bert.pooler.dense"),  # reads a vector of each text
        ("gpt2", "transformer.h.1.mlp.c_proj"),  # Conv1D
        ("vit", "vit.layers.1.mlp.fc2"),
    ],
)
def test_a_layer_starts_in_the_directions_in_which_its_inputs_vary_most(name, layer):
    inputs = capture_inputs(name, layer).double()
    expected = torch.linalg.svd(inputs - inputs.mean(0)).Vh
    matrix = list_layers(initialize(name))[layer].lora_A["default"].weight.double()
    cosines = (expected[: len(matrix)] * matrix).sum(1).abs()
    torch.testing.assert_close(cosines, torch.ones_like(cosines), atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", ["bert", "gpt2", "vit"])
def test_the_network_starts_as_it_was(name):
    with torch.inference_mode():
        expected = build_network(name)(**build_batches(name)[0]).logits
        found = initialize(name).eval()(**build_batches(name)[0]).logits
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_ranks_move_between_layers_and_their_sum_stays():
    layers = list_layers(initialize("bert"))
    ranks = [module.r["default"] for module in layers.values()]
    assert sum(ranks) == 4 * 13 and len(set(ranks)) > 1
    assert max(ranks) <= 8
    scales = {module.scaling["default"] for module in layers.values()}
    assert scales == {1.0}  # alpha moves with the rank


def test_ranks_go_to_the_largest_shares():
    shares = {"a": torch.tensor([0.6, 0.3, 0.1]), "b": torch.tensor([0.4, 0.35]), "c": torch.tensor([0.2])}
    assert eva.share_ranks(shares, 4) == {"a": 2, "b": 2, "c": 0}


def test_without_redistribution_all_ranks_stay():
    layers = list_layers(initialize("bert", adapter_config={"eva_config": {"rho": 1.0}}))
    assert {layer.r["default"] for layer in layers.values()} == {4}


def test_whitening_scales_the_directions():
    plain = list_layers(initialize("vit"))["vit.layers.0.mlp.fc1"].lora_A["default"].weight
    config = {"eva_config": {"whiten": True}}
    white = list_layers(initialize("vit", adapter_config=config))["vit.layers.0.mlp.fc1"].lora_A["default"].weight
    assert torch.nn.functional.cosine_similarity(plain, white).min() > 0.999
    assert (plain.norm(dim=1) - 1).abs().max() < 1e-5
    assert (white.norm(dim=1).diff() > 0).all()  # divided by singular values, which fall


def test_a_layer_that_reads_few_vectors_gets_no_more_directions_than_they_span(monkeypatch):
    batches = build_batches("bert")[:1]
    batches = [{key: value[:3] for key, value in batches[0].items()}]  # the pooler reads three vectors
    adapted = adapt("bert")
    eva.initialize_eva(adapted, lambda: batches)
    assert list_layers(adapted)["bert.pooler.dense"].r["default"] <= 2


def test_a_layer_without_a_rank_is_left_alone_and_the_saved_adapter_says_so(tmp_path, monkeypatch):
    name = "bert.encoder.layer.0.output.dense"
    original = eva.share_ranks
    monkeypatch.setattr(eva, "share_ranks", lambda *args: original(*args) | {f"base_model.model.{name}": 0})
    build_network("bert").save_pretrained(tmp_path / "base")
    adapted = initialize("bert")
    assert name not in list_layers(adapted) and len(list_layers(adapted)) == 12
    for parameter in adapted.parameters():
        parameter.data.add_(0.02 if parameter.requires_grad else 0)
    adapted.save_pretrained(tmp_path / "adapter")
    base = type(build_network("bert")).from_pretrained(tmp_path / "base")
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / "adapter")
    assert list_layers(loaded).keys() == list_layers(adapted).keys()
    with torch.inference_mode():
        expected, found = (network.eval()(**build_batches("bert")[0]).logits for network in (adapted, loaded))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_covariances_beyond_the_memory_are_made_in_several_passes(monkeypatch):
    expected = initialize("bert").state_dict()
    passes = []
    monkeypatch.setattr(eva, "MEMORY", 3000)
    adapted = adapt("bert")
    eva.initialize_eva(adapted, lambda: passes.append(1) or build_batches("bert"))
    assert len(passes) > 3
    found = adapted.state_dict()
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        if "lora_A" in key:
            torch.testing.assert_close(found[key], value)


def test_over_a_bfloat16_body_the_matrices_are_float32():
    network = build_network("distilbert").to(torch.bfloat16)
    args = ModelArguments(lora_r=4, adapter="eva", dtype="bfloat16")
    adapted = MODES["peft"].adapt(network, args, head_modules(network, []), None)
    eva.initialize_eva(adapted, lambda: build_batches("distilbert"))
    assert {p.dtype for p in adapted.parameters() if p.requires_grad} == {torch.float32}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return tiny.write_text_task(tmp_path_factory.mktemp("eva"))


def test_a_run_reads_its_own_rows_repeats_with_the_seed_and_counts_the_cost(files, tmp_path):
    words = ["--train_file", f"{files}/train.csv", "--test_file", f"{files}/test.csv", "--use_cpu", "--lora_r", "4"]
    words += ["--model_name_or_path", f"{files}/bert", "--max_steps", "2", "--learning_rate", "1e-9"]
    flops = {}
    for folder, more in {"eva": ["--adapter", "eva"], "again": ["--adapter", "eva"], "lora": []}.items():
        run(parse_args([*words, *more, "--output_dir", str(tmp_path / folder)], mode="peft"))
        flops[folder] = RunRecord.read(tmp_path / folder).cost["train_flops"]
    saved, again, plain = (load_file(tmp_path / name / "adapter_model.safetensors") for name in flops)
    assert all(torch.equal(again[key], value) for key, value in saved.items())
    matrices = {key: value.numpy() for key, value in saved.items() if "lora_A" in key}
    assert all(np.allclose(m @ m.T, np.eye(len(m)), atol=1e-4) for m in matrices.values())
    assert not any(np.allclose(m @ m.T, np.eye(4), atol=0.1) for key, m in plain.items() if "lora_A" in key)
    assert flops["eva"] > 1.1 * flops["lora"]
