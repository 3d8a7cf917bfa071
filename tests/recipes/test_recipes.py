"""Each recipe is `hftl train` with the mode fixed: same flags, same settings."""

import runpy
import sys
from pathlib import Path

import pytest

import hftl.training.run
from hftl import cli
from hftl.models.modes import MODES

RECIPES = Path(__file__).parents[2] / "recipes"
MODE_OF = {"full.py": "full", "lora.py": "peft", "qlora.py": "peft", "probe.py": "probe", "scratch.py": "scratch"}
SETTINGS = {"qlora.py": ["--quantization", "nf4"]}  # what a recipe adds to the words


class Captured(Exception):
    """Raised in place of a run, with what it was asked for."""


@pytest.fixture(autouse=True)
def no_run(monkeypatch):
    def capture(args, **kwargs):
        raise Captured(args)

    monkeypatch.setattr(hftl.training.run, "run", capture)


def _start(recipe, words, monkeypatch):
    """Start a recipe as `python recipes/NAME` does."""
    monkeypatch.setattr(sys, "argv", [str(RECIPES / recipe), *words])
    return runpy.run_path(str(RECIPES / recipe), run_name="__main__")


def test_there_is_one_recipe_for_each_mode_that_makes_something():
    assert sorted(path.name for path in RECIPES.glob("*.py")) == sorted([*MODE_OF, "compare.py"])
    assert set(MODE_OF.values()) == set(MODES) - {"zero-shot"}


@pytest.mark.parametrize("recipe", MODE_OF)
def test_a_recipe_answers_help(recipe, monkeypatch, capsys):
    with pytest.raises(SystemExit) as exit:
        _start(recipe, ["--help"], monkeypatch)

    assert exit.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: {recipe} [-h]")


@pytest.mark.parametrize(
    "words", [[], [str(RECIPES / "configs" / "fashion-mnist.yaml"), "--seed", "3", "--lora_r", "4"]]
)
@pytest.mark.parametrize("recipe", MODE_OF)
def test_a_recipe_and_train_of_its_mode_ask_for_the_same_run(recipe, words, monkeypatch):
    with pytest.raises(Captured) as from_recipe:
        _start(recipe, words, monkeypatch)
    with pytest.raises(Captured) as from_train:
        cli.main(["train", *words, "--mode", MODE_OF[recipe], *SETTINGS.get(recipe, [])])

    (recipe_args,), (train_args,) = from_recipe.value.args, from_train.value.args
    assert recipe_args.resolved() == train_args.resolved()
    assert (recipe_args.data, recipe_args.model) == (train_args.data, train_args.model)
    assert recipe_args.model.mode == MODE_OF[recipe]
    assert recipe_args.data.dataset == ("bundled:fashion-mnist" if words else "bundled:wordnet")


def test_a_flag_wins_over_what_the_recipe_sets(monkeypatch):
    with pytest.raises(Captured) as captured:
        _start("qlora.py", ["--quantization", "int8"], monkeypatch)
    assert captured.value.args[0].model.quantization == "int8"


@pytest.mark.parametrize("recipe", MODE_OF)
def test_a_recipe_turns_a_mistake_into_exit_code_2(recipe, monkeypatch, capsys):
    with pytest.raises(SystemExit) as exit:
        _start(recipe, ["--learning_rat", "1"], monkeypatch)

    assert exit.value.code == 2
    assert "Did you mean '--learning_rate'?" in capsys.readouterr().err


def test_a_recipe_imports_nothing_but_the_command_line():
    for path in RECIPES.glob("*.py"):
        lines = [line for line in path.read_text().splitlines() if line.startswith(("import ", "from "))]
        verb = "compare, guarded" if path.name == "compare.py" else "guarded, run_recipe"
        assert lines == ["import sys", f"from hftl.cli import {verb}"], path
