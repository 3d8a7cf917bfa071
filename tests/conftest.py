"""Every test runs offline, on one thread and with its own data set cache. Caches of checkpoints stay as they are."""

import gc
import os
import tempfile

# Before anything imports these libraries: they read the environment once.
IS_HUB_ALLOWED = os.environ.get("HFTL_TEST_HUB") == "1"
os.environ["HF_HUB_OFFLINE"] = "0" if IS_HUB_ALLOWED else "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_UPDATE_DOWNLOAD_COUNTS"] = "0"  # of evaluate
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"  # two torch threads beside a busy core are many times slower than one
_CACHE = tempfile.TemporaryDirectory(prefix="hftl-tests-", ignore_cleanup_errors=True)  # removed at exit
os.environ["HF_DATASETS_CACHE"] = _CACHE.name
os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = _CACHE.name

import datasets  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

from hftl.config import parse_args  # noqa: E402
from hftl.training.run import run  # noqa: E402
from tests.hub.hub_server import hub  # noqa: E402, F401 - a fixture

torch.set_num_threads(1)
transformers.utils.logging.disable_progress_bar()
datasets.disable_progress_bars()


@pytest.fixture(scope="module", autouse=True)
def frozen_imports():
    """Every run collects garbage, which takes a third of a second over all that is imported."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def gradients_stay_on():
    """A test that leaves gradients off fails itself, not the trainings after it."""
    yield
    if not torch.is_grad_enabled():
        torch.set_grad_enabled(True)
        pytest.fail("gradients are off after this test")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = {
        "gpu": None if torch.cuda.is_available() else "needs a CUDA device",
        "hub": None if IS_HUB_ALLOWED else "needs the Hub: set HFTL_TEST_HUB=1",
        "exhaustive": None if os.environ.get("HFTL_TEST_EXHAUSTIVE") == "1" else "set HFTL_TEST_EXHAUSTIVE=1",
    }
    for item in items:
        for marker, reason in missing.items():
            if reason and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="module")
def train_once(files, tmp_path_factory):
    """Function: mode and flags -> run folder, each made once; `files` of the module is a folder with a text task."""
    made = {}

    def make(mode, *flags):
        if (mode, flags) not in made:
            folder = tmp_path_factory.mktemp("runs") / "run"
            words = ["--train_file", f"{files}/train.csv", "--test_file", f"{files}/test.csv", "--use_cpu"]
            words += ["--model_name_or_path", f"{files}/bert", "--output_dir", str(folder), *flags]
            run(parse_args(words, mode=mode))
            made[mode, flags] = folder
        return made[mode, flags]

    return make
