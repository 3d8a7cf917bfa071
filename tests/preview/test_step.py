"""A simulated step holds what a real one holds."""

import weakref

import pytest
import torch
import transformers

from hftl.config import parse_args
from hftl.models.head import head_modules
from hftl.models.load import load_pretrained, read_config
from hftl.models.modes import find_mode
from hftl.preview.live_memory import LiveMemory
from hftl.preview.step import Plan, Shape, Simulator, _compute_loss, _forward, build_network
from hftl.tasks import build_task
from tests import tiny

NETWORKS = {
    "bert": ("text-classification", tiny.write_tiny_bert, Shape(8, 24)),
    "vit": ("image-classification", tiny.write_tiny_vit, Shape(8, 32)),
    "resnet": ("image-classification", tiny.write_tiny_convnet, Shape(8, 32)),
    "segformer": ("semantic-segmentation", tiny.write_tiny_segformer, Shape(8, 32)),
    "llama": ("causal-lm", tiny.write_tiny_llama, Shape(4, 24)),
}
CASES = [
    (name, mode)
    for name, (task, *_) in NETWORKS.items()
    for mode in build_task(task).modes
    if mode in ("full", "peft", "scratch")
]


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    base = tmp_path_factory.mktemp("networks")

    def get(name, mode, *flags):
        task, write, _ = NETWORKS[name]
        if not (base / name).exists():
            write(base / name)
        words = ["--task", task, "--dataset", "x", "--model_name_or_path", str(base / name), "--use_cpu"]
        return parse_args([*words, "--output_dir", str(base / "out"), *flags], mode=mode)

    return get


def simulate(arguments, name, mode, plan=None, shape=None, *flags):
    args, task = arguments(name, mode, *flags), build_task(NETWORKS[name][0])
    network = build_network(args.model, task)
    return Simulator(network, task, plan or Plan()).make(shape or NETWORKS[name][2])


def build_real(args, task):
    """The network of a run, with weights."""
    loaded = load_pretrained(args.model, task, read_config(args.model, task))
    heads = head_modules(loaded.network, [], has_new_head=task.has_new_head)
    return find_mode(args.model.mode).adapt(loaded.network, args.model, heads, task.peft_task_type, range(0)).train()


def measure_saved(network, task, shape):
    """Bytes that autograd keeps, by its own hook: each storage once, without the network's own."""
    own = {t.untyped_storage().data_ptr() for t in [*network.parameters(), *network.buffers()]}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = _compute_loss(_forward(network, task, shape, Plan()), task, shape)
    saved = sum(kept.values())
    loss.backward()
    return saved


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name, mode", CASES)
def test_terms_are_those_of_a_real_step(arguments, name, mode):
    args, (task_name, _, shape) = arguments(name, mode), NETWORKS[name]
    task = build_task(task_name)
    found = simulate(arguments, name, mode)
    network = build_real(args, task)
    tensors = {id(t): t for t in [*network.parameters(), *network.buffers()]}.values()
    assert found.weights == pytest.approx(sum(t.untyped_storage().nbytes() for t in tensors), rel=0.03)
    saved = measure_saved(network, task, shape)
    assert found.activations == pytest.approx(saved, rel=0.1)
    trained = [p for p in network.parameters() if p.requires_grad]
    assert found.num_trained == sum(p.numel() for p in trained)
    optimizer = torch.optim.AdamW(trained)
    optimizer.step()
    states = [v for state in optimizer.state.values() for key, v in state.items() if key != "step"]
    has_gradient = [p for p in trained if p.grad is not None]
    assert found.gradients == pytest.approx(sum(p.grad.nbytes for p in has_gradient), rel=0.03)
    assert found.optimizer == pytest.approx(sum(v.nbytes for v in states), rel=0.03)


@pytest.mark.parametrize("name", ["bert", "resnet"])
def test_the_peak_of_the_passes_is_that_of_real_tensors(arguments, name):
    task, shape = build_task(NETWORKS[name][0]), NETWORKS[name][2]
    network = build_real(arguments(name, "full"), task)
    memory = LiveMemory([*network.parameters(), *network.buffers()])
    weights = memory.now
    with memory:
        _compute_loss(_forward(network, task, shape, Plan()), task, shape).backward()
    assert simulate(arguments, name, "full").passes == pytest.approx(memory.peak - weights, rel=0.05)


def test_an_adapter_of_a_convolutional_network_saves_little(tmp_path):
    """What is kept for the backward pass is nearly all of the memory, and an adapter keeps as much."""
    transformers.ResNetConfig().save_pretrained(tmp_path)  # ResNet-50, without weights
    words = ["--task", "image-classification", "--dataset", "x", "--model_name_or_path", str(tmp_path), "--use_cpu"]
    task = build_task("image-classification")
    full, lora = (
        Simulator(build_network(parse_args(words, mode=mode).model, task), task, Plan()).make(Shape(8, 224))
        for mode in ("full", "peft")
    )
    assert lora.num_trained < 0.3 * full.num_trained
    assert lora.activations > 0.9 * full.activations and lora.peak > 0.7 * full.peak


def test_recomputation_keeps_less_and_computes_more(arguments):
    shape = Shape(32, 32)
    plain, checkpointed = (
        simulate(arguments, "bert", "full", Plan(is_checkpointed=flag), shape) for flag in (False, True)
    )
    assert checkpointed.activations < 0.6 * plain.activations and checkpointed.passes < plain.passes
    assert 1.2 < checkpointed.flops / plain.flops < 1.4


def test_optimizers_and_bits_have_their_sizes(arguments):
    full = simulate(arguments, "bert", "full")
    small = simulate(arguments, "bert", "full", Plan(optim="paged_adamw_8bit"))
    assert small.optimizer == pytest.approx(full.num_trained * (2 + 1 / 32), rel=1e-3)
    assert simulate(arguments, "bert", "full", Plan(optim="sgd")).optimizer == 0
    lora, qlora = (simulate(arguments, "llama", "peft", Plan(is_quantized=flag)) for flag in (False, True))
    assert qlora.weights < 0.7 * lora.weights and qlora.num_trained == lora.num_trained
    half = Plan(torch.bfloat16), Plan(torch.bfloat16, is_quantized=True)
    cast, unpacked = (simulate(arguments, "llama", "peft", plan) for plan in half)
    assert unpacked.passes < cast.passes and unpacked.weights == pytest.approx(qlora.weights, rel=0.01)


def test_a_probe_has_no_backward_pass(arguments):
    probe = simulate(arguments, "bert", "probe", Plan(is_trained=False))
    full = simulate(arguments, "bert", "full")
    assert (probe.gradients, probe.optimizer, probe.activations) == (0, 0, 0)
    assert probe.flops == pytest.approx(full.flops / 3, rel=0.1) and probe.peak < full.peak / 2


def test_memory_counts_a_storage_once_and_until_it_is_freed():
    memory = LiveMemory()
    with memory:
        first = torch.ones(1000)
        view = first.view(10, 100)
        second = torch.ones(500)
    assert memory.now == memory.peak == 6000 and memory.largest == 4000
    gone = weakref.ref(second)
    del second
    assert gone() is None and memory.now == 4000
    del first
    assert memory.now == 4000
    del view
    assert memory.now == 0 and memory.peak == 6000


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_simulation_leaves_nothing_behind(tmp_path):
    """RT-DETR's class keeps its anchors for the whole process: those of a simulation have no content."""
    words = ["--task", "object-detection", "--dataset", "x", "--use_cpu", "--output_dir", str(tmp_path / "out")]
    words += ["--model_name_or_path", str(tiny.write_tiny_rt_detr(tmp_path / "network"))]
    args, task = parse_args(words, mode="full"), build_task("object-detection")
    step = Simulator(build_network(args.model, task), task, Plan()).make(Shape(2, 64))
    assert step.flops > 0
    network = load_pretrained(args.model, task, read_config(args.model, task)).network.train()
    found = network(torch.zeros(2, 3, 64, 64)).pred_boxes
    assert type(found) is torch.Tensor and found.isfinite().all()
