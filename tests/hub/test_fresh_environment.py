"""A recipe pushes at the end of its run; an environment with transformers and peft alone repeats its predictions.

The environment is a venv of its own, into which what the two need is linked, as far as their own metadata say.
"""

import json
import subprocess
import sys
import venv
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import HfApi
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from hftl.run_record import RunRecord, read_predictions
from tests import tiny
from tests.hub.hub_server import serve

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
ASK = """
import importlib.util, json, re, sys
import torch
from huggingface_hub import hf_hub_download

for name in ("hftl", "datasets", "evaluate", "pytest"):
    assert importlib.util.find_spec(name) is None, name
card = open(hf_hub_download("tester/x", "README.md"), encoding="utf-8").read()
exec(re.search("```python\\n(.*?)```", card, re.DOTALL)[1])
with torch.no_grad():
    logits = [model(**processor(row, truncation=True, return_tensors="pt")).logits[0].tolist()
              for row in json.load(sys.stdin)]
print(json.dumps(logits))
"""


def build_environment(folder: Path, *names: str) -> Path:
    """A venv with these distributions and what they require, as links; returns its Python."""
    venv.create(folder, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    for name in list_requirements(names):
        found = distribution(name)
        for top in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
            if not (packages / top).exists():
                (packages / top).symlink_to(found.locate_file(top))
    return folder / "bin" / "python"


def list_requirements(names: tuple[str, ...]) -> set[str]:
    """These distributions and all that they need without extras."""
    found: set[str] = set()
    waiting = [*names]
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in found:
            continue
        found.add(name)
        needed = [Requirement(text) for text in distribution(name).requires or ()]
        waiting += [one.name for one in needed if one.marker is None or one.marker.evaluate({"extra": ""})]
    return found


def test_a_recipe_pushes_and_a_fresh_environment_repeats_its_predictions(tmp_path):
    tiny.write_text_task(tmp_path)
    texts = [row["text"] for row in tiny.make_texts(9, seed=1)]
    with serve() as hub:
        api = HfApi(endpoint=hub.endpoint, token=hub.token)
        with pytest.MonkeyPatch.context() as patch:
            hub.connect_client(patch, tmp_path / "home")
            api.create_repo("org/bert")
            api.upload_folder(repo_id="org/bert", folder_path=tmp_path / "bert")
        words = ["--train_file", "train.csv", "--test_file", "test.csv", "--model_name_or_path", "org/bert"]
        words += ["--use_cpu", "--max_steps", "3", "--output_dir", "run", "--push_to_hub"]
        launch = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "--num_machines", "1"]
        launch += ["--mixed_precision", "no", "--dynamo_backend", "no", f"{ROOT}/recipes/lora.py"]
        environment = hub.client_environment(tmp_path / "trainer", hub.token)
        start([sys.executable, *launch, *words, "--hub_model_id", "tester/x"], environment, tmp_path)
        environment = hub.client_environment(tmp_path / "reader", hub.token)
        del environment["PYTHONPATH"]
        python = build_environment(tmp_path / "fresh", "transformers", "peft")
        printed = start([python, "-W", "ignore", "-c", ASK], environment, tmp_path, json.dumps(texts))
    label, logits = printed.splitlines()[-2:]
    assert label in RunRecord.read(tmp_path / "run").data["label_names"]  # what the code of the card prints
    stored = read_predictions(tmp_path / "run")
    found = np.asarray(json.loads(logits))[stored["row_id"]]
    assert (found.argmax(-1) == stored["prediction"]).all()
    shares = np.exp(found) / np.exp(found).sum(-1, keepdims=True)
    np.testing.assert_allclose(shares, stored["probabilities"], atol=2e-5)


def start(command: list, environment: dict[str, str], folder: Path, stdin: str = "") -> str:
    done = subprocess.run(
        command, input=stdin, env=environment, cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout
