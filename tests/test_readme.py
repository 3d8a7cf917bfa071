"""The README says what is there: its tables are those of the results, its paths exist, its commands parse."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from hftl.compare.experiment import read_experiment
from hftl.config import parse_args

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_tables_are_what_the_results_say():
    process = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "tables.py", "--check"], capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr


def test_every_path_of_the_tree_exists():
    tree = README.split("## Where things are")[1].split("```")[1]
    parent, names = "", []
    for line in tree.strip().splitlines():
        words = [word for word in re.split(r"\s{2,}", line.strip())[0].split() if "." in word or "/" in word]
        parent = "hftl/" if line.startswith("hftl/") else "" if not line.startswith(" ") else parent
        names += [(parent if line.startswith(" ") else "") + word for word in words]
    assert len(names) > 15
    assert [name for name in names if not (ROOT / name).exists()] == []


def read_examples() -> list[str]:
    block = README.split("## Train on your own data")[1].split("```bash")[1].split("```")[0].replace("\\\n", " ")
    return [line for line in block.splitlines() if line.startswith("hftl ")]


@pytest.mark.parametrize("command", read_examples())
def test_examples_parse(command):
    words = shlex.split(command)
    assert words[:2] == ["hftl", "train"]
    assert parse_args(words[2:]).model.mode in ("full", "peft", "scratch")


def test_there_are_examples():
    assert len(read_examples()) == 10


def test_the_experiment_of_the_readme_is_one(tmp_path):
    """With the data of a test: what it says besides is read and checked as a user's file is."""
    block = README.split("## Compare on your own data")[1].split("```yaml")[1].split("```")[0]
    (tmp_path / "experiment.yaml").write_text(block)
    experiment = read_experiment(tmp_path / "experiment.yaml")
    assert [arm.name for arm in experiment.arms][-1] == "small"
    assert all(arm.ranges for arm in experiment.arms if arm.is_trained)
