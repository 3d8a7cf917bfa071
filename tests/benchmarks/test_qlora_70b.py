"""The 70B benchmark on a CPU: the same code over a tiny Llama. What needs a GPU is its numbers, not its paths."""

import argparse
import gc
import json
import sys
import time
from pathlib import Path

import bitsandbytes
import pytest
import torch
import torch.nn.functional as F

from hftl.cost.flops import count_flops

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))  # scripts, not a package

import llama_training  # noqa: E402
import memory_plan  # noqa: E402
import qlora_70b  # noqa: E402
from memory_plan import CASES, SHAPES, Shape  # noqa: E402

pytestmark = (
    # transformers 5.23; 5.17 has only the old name
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing_(en|dis)able` is deprecated:FutureWarning")
)
CPU, TINY = torch.device("cpu"), SHAPES["tiny"]
OUT_OF_MEMORY = "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.18 GiB"


@pytest.fixture(autouse=True, scope="module")
def few_objects_to_collect():
    """The script collects garbage before each trial: leave out what the libraries brought along."""
    llama_training.build_trainee(TINY, CASES["70b-qlora"], CPU)  # imports them
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def qlora():
    return llama_training.build_trainee(TINY, CASES["70b-qlora"], CPU)


def is_body(shape) -> bool:
    return len(shape) == 2 and TINY.vocab not in shape


def test_one_matrix_at_a_time_is_not_quantized_and_each_comes_back_near_what_was_drawn(monkeypatch):
    original, drawn, waiting = llama_training.draw_weight, [], []

    def draw(*args):
        weight = original(*args)
        tensors = [t for t in gc.get_objects() if issubclass(type(t), torch.Tensor) and t.device == CPU]
        waiting.append(sum(t.dtype == torch.bfloat16 and is_body(t.shape) for t in tensors if t is not weight))
        if is_body(weight.shape):
            drawn.append(weight.float())  # a copy
        return weight

    monkeypatch.setattr(llama_training, "draw_weight", draw)
    network = llama_training.build_network(TINY, "qlora", CPU)
    assert len(waiting) == 14 + 2 and set(waiting) == {0}
    layers = [m for m in network.modules() if isinstance(m, bitsandbytes.nn.Linear4bit)]
    assert len(layers) == len(drawn) == 14
    for layer, weight in zip(layers, drawn, strict=True):
        state = layer.weight.quant_state
        assert (state.quant_type, state.nested, layer.weight.dtype) == ("nf4", True, torch.uint8)
        error = bitsandbytes.functional.dequantize_4bit(layer.weight.data, state).float() - weight
        assert 0.05 < error.norm() / weight.norm() < 0.12  # nf4 of normal weights: about 0.09
    others = {name: p.dtype for name, p in network.named_parameters() if not hasattr(p, "quant_state")}
    assert set(others.values()) == {torch.bfloat16}
    assert {"model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"} < set(others)


def test_only_adapters_on_all_linear_layers_train(qlora):
    before = {name: p.detach().clone() for name, p in qlora.network.named_parameters()}
    batch = llama_training.draw_batch(qlora, 32)
    for _ in range(2):  # A moves in the second: B starts at zero
        llama_training.train_step(qlora, batch)
    moved = {name for name, p in qlora.network.named_parameters() if not torch.equal(p, before[name])}
    trained = {name for name, p in qlora.network.named_parameters() if p.requires_grad}
    assert moved == trained and all("lora_" in name for name in trained)
    assert len(trained) == 14 * 2
    assert {p.dtype for p in qlora.trained()} == {torch.float32}
    assert sum(p.numel() for p in qlora.trained()) == TINY.num_adapters


def test_chunked_loss_and_its_gradients_are_those_of_cross_entropy():
    torch.manual_seed(0)
    hidden = torch.randn(50, 8, requires_grad=True)
    weight = torch.randn(31, 8, requires_grad=True)
    labels = torch.randint(31, (50,))
    expected = F.cross_entropy(hidden @ weight.T, labels)
    gradients = torch.autograd.grad(expected, (hidden, weight))
    loss = llama_training.chunked_cross_entropy(hidden, weight, labels, chunk=16)  # 50 is no multiple
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.autograd.grad(loss, (hidden, weight)), gradients, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["8b-lora", "8b-full"])
def test_flops_of_the_formula_are_those_that_are_counted(name):
    """Over bfloat16 or float32, because the counter does not see products with 4-bit weights; without checkpoints."""
    trainee, mode, length = llama_training.build_trainee(TINY, CASES[name], CPU), CASES[name].mode, 64
    trainee.network.gradient_checkpointing_disable()
    batch = llama_training.draw_batch(trainee, length)
    counted = count_flops(lambda: llama_training.compute_loss(trainee.network, batch).backward())
    formula = length * memory_plan.count_flops_per_token(TINY, mode)
    # The counter does not know that causal kernels skip half, and counts five products in attention's backward pass,
    # which computes the scores again, where the formula has four: 4 + 10 for 4 + 8, and no half.
    attention = length * memory_plan.count_attention_flops_per_token(TINY, length) * 2 * 14 // 12
    # The loss computes its logits twice. The last token has no label, so the head never sees it.
    factor = 6 if mode == "full" else 4
    head = 2 * TINY.num_head * (length - 1) - factor * TINY.num_head
    assert counted == pytest.approx(formula + attention + head, rel=1e-4)  # transformers 5.17 multiplies for rotary
    assert counted == pytest.approx(formula, rel=0.3)  # tiny, so the head is a fifth of it; at 70B it is 1.5 percent


@pytest.mark.parametrize("name", CASES)
def test_bytes_on_paper_are_those_of_the_built_network(name):
    case, length = CASES[name], 32
    trainee = llama_training.build_trainee(TINY, case, CPU)
    llama_training.train_step(trainee, llama_training.draw_batch(trainee, length))
    held, plan = qlora_70b.count_held_bytes(trainee), memory_plan.plan_memory(TINY, case, length)
    trained = plan["gradients"]
    assert held["nf4_weights"] == plan["nf4_weights"]
    assert held["other_weights"] + held["trained"] == plan["other_weights"] + plan["adapters"]
    assert held["trained"] == trained == 4 * sum(p.numel() for p in trainee.trained())
    assert held["optimizer"] == plan["optimizer"]


def test_peak_on_paper_is_that_of_the_allocator(tmp_path):
    shape, case, length = Shape(3, 128, 448, 4, 1, 512, 1e-3), CASES["8b-lora"], 512
    trainee = llama_training.build_trainee(shape, case, CPU)
    batch = llama_training.draw_batch(trainee, length)
    llama_training.train_step(trainee, batch)  # makes the states of the optimizer
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        llama_training.train_step(trainee, batch)
    profile.export_chrome_trace(str(tmp_path / "trace.json"))
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    events = sorted((e for e in events if e["name"] == "[memory]"), key=lambda e: e["ts"])
    totals = [event["args"]["Total Allocated"] for event in events]
    peak = max(totals) - totals[0] + events[0]["args"]["Bytes"]
    plan = memory_plan.plan_memory(shape, case, length)
    assert peak == pytest.approx(plan["gradients"] + plan["checkpoints"] + plan["working"], rel=0.15)


def test_published_sizes():
    assert SHAPES["70b"].num_parameters == 70_553_706_496
    assert SHAPES["8b"].num_parameters == 8_030_261_248
    nf4, _ = memory_plan.count_weight_bytes(SHAPES["70b"], "qlora")
    assert 8 * nf4 / SHAPES["70b"].num_body == pytest.approx(4 + 8 / 64 + 32 / (64 * 256), abs=1e-3)


def test_plan_is_printed_at_once_and_says_what_fits(capsys):
    start = time.monotonic()
    assert qlora_70b.main(["--plan"]) == 0
    assert time.monotonic() - start < 2
    rows = {line.split(" | ")[0].strip("| "): line.split(" | ") for line in capsys.readouterr().out.splitlines()[3:]}
    assert set(rows) == set(CASES)
    assert rows["70b-qlora"][-2] == "yes" and rows["8b-full"][-2] == "no"


def run_main(tmp_path, monkeypatch, *words):
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    common = ["--config", "tiny", "--sequence_length", "32", "--num_steps", "4", "--output", str(tmp_path / "r.json")]
    code = qlora_70b.main([*common, *words])
    content = json.loads((tmp_path / "r.json").read_text())
    assert json.loads((tmp_path / "out" / "r.json").read_text()) == content
    return code, content


def test_running_out_of_memory_is_a_result_and_the_other_cases_run(tmp_path, monkeypatch, capsys):
    original, written = qlora_70b.train_step, []

    def train_step(trainee, batch):
        if trainee.network.lm_head.weight.requires_grad:
            raise torch.OutOfMemoryError(OUT_OF_MEMORY)
        return original(trainee, batch)

    monkeypatch.setattr(qlora_70b, "train_step", train_step)
    write = qlora_70b.write_results
    monkeypatch.setattr(qlora_70b, "write_results", lambda content, path: (written.append(1), write(content, path)))
    code, content = run_main(tmp_path, monkeypatch, "--commit", "abc")
    assert code == 0 and len(written) == 4
    cases = content.pop("cases")
    assert {"date", "command", "commit", "environment", "config", "memory_cap_bytes", "mfu"} == set(content)
    assert content["commit"] == "abc" and {"device", "packages"} <= set(content["environment"])
    assert list(cases) == ["70b-qlora", "8b-full", "8b-lora", "8b-qlora"]
    assert all(set(record) == set(qlora_70b.FIELDS) for record in cases.values())
    failed = cases.pop("8b-full")
    assert (failed["status"], failed["bytes_asked"]) == ("out_of_memory", round(2.5 * 2**30))
    for record in cases.values():
        assert record["status"] == "completed"
        assert record["loss_after"] < record["loss_before"] < 10
        assert record["tokens_per_second"] > 0 and record["peak_memory_bytes"] > 0 and record["mfu"] is None
        assert record["num_trainable_parameters"] * 4 == record["adapter_bytes"]
    assert "8b-full: out_of_memory; bytes_asked 2684354560" in capsys.readouterr().out


def test_another_error_is_a_failure_but_the_next_case_runs(tmp_path, monkeypatch):
    original = qlora_70b.build_trainee

    def build(shape, case, device):
        if case.mode == "lora":
            raise ValueError("no such thing")
        return original(shape, case, device)

    monkeypatch.setattr(qlora_70b, "build_trainee", build)
    code, content = run_main(tmp_path, monkeypatch, "--cases", "8b-lora", "8b-qlora")
    assert code == 1
    assert content["cases"]["8b-lora"]["error"] == "ValueError: no such thing"
    assert [record["status"] for record in content["cases"].values()] == ["failed", "completed"]


def test_a_case_that_would_take_too_long_is_not_begun(tmp_path, monkeypatch):
    code, content = run_main(tmp_path, monkeypatch, "--max_seconds", "10")
    assert code == 0
    assert {record["status"] for record in content["cases"].values()} == {"not run: time"}


@pytest.mark.parametrize("losses", [[2.0, 2.1], [2.0, float("nan")], [float("inf"), 1.0]])
def test_a_network_that_does_not_learn_its_batch_has_failed(losses):
    assert qlora_70b.judge_losses([3.0, 2.9])["status"] == "completed"
    assert qlora_70b.judge_losses(losses)["status"] == "failed"


@pytest.mark.parametrize("low", [0, 256, 1024])
@pytest.mark.parametrize("limit", [1024, 1100, 4863])
@pytest.mark.parametrize("guess", [0, 512, 1100, 9000])
def test_search_ends_within_256_tokens_of_the_limit(low, limit, guess):
    tried = []
    longest, refused = memory_plan.find_longest(lambda n: tried.append(n) or n <= limit, low, guess=guess)
    assert longest == limit // 256 * 256 and refused == longest + 256
    assert all(length % 256 == 0 for length in tried) and len(tried) == len(set(tried)) < 16
    assert guess // 256 * 256 <= low or tried[0] == guess // 256 * 256


def test_search_stops_where_the_positions_end():
    assert memory_plan.find_longest(lambda n: True, 2048) == (131_072, None)


def test_search_of_a_trainee_with_and_without_time(qlora, monkeypatch):
    lengths = []

    def train_step(trainee, batch):
        lengths.append(batch.shape[1])
        if batch.shape[1] > 700:
            raise torch.OutOfMemoryError(OUT_OF_MEMORY)

    monkeypatch.setattr(qlora_70b, "train_step", train_step)
    found = qlora_70b.search_sequence(qlora, 0, None, time.monotonic() + 60)
    assert (found["max_sequence_length"], found["search"]["shortest_out_of_memory"]) == (512, 768)
    assert found["search"]["is_exact"]
    assert lengths[:2] == [256, 256]  # the second step finds the states of the optimizer that the first one made
    stopped = qlora_70b.search_sequence(qlora, 256, None, time.monotonic() - 1)
    assert stopped["max_sequence_length"] == 256
    assert stopped["search"] == {"shortest_out_of_memory": None, "is_exact": False, "trials": []}


def test_a_case_that_ran_out_of_memory_is_searched_below(monkeypatch):
    def train_step(trainee, batch):
        trainee.optimizer.state[trainee.trained()[0]] = {"step": 0}  # half of a state
        if batch.shape[1] > 300:
            raise torch.OutOfMemoryError(OUT_OF_MEMORY)

    monkeypatch.setattr(qlora_70b, "train_step", train_step)
    options = argparse.Namespace(sequence_length=2048, num_steps=2, search=True)
    records = []
    qlora_70b.run_case("8b-full", TINY, options, time.monotonic() + 60, lambda record: records.append(dict(record)))
    assert [record["max_sequence_length"] for record in records] == [None, 256]
    assert records[-1]["status"] == "out_of_memory"


@pytest.mark.parametrize(
    ("words", "message"),
    [([], "there is no CUDA device"), (["--config", "tiny", "--search"], "--search needs a CUDA device")],
)
def test_without_a_gpu_it_says_what_runs(words, message, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        qlora_70b.main(words)
    assert message in capsys.readouterr().err
