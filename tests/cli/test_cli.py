"""What is typed: verbs, help, exit codes, and how `--accelerate_config` restarts the command."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import hftl
from hftl import cli
from hftl.cli.words import default_config
from hftl.errors import OutOfResources, TrainingDiverged, UserError

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "transformers", "datasets", "peft", "numpy", "accelerate", "pandas", "sklearn"}


class Launched(Exception):
    """Stands for the process image that `os.execv` replaces."""


@pytest.fixture
def execv(monkeypatch):
    """The words of the last `os.execv`."""
    calls = []

    def replace(path, words):
        calls.append((path, words))
        raise Launched

    monkeypatch.setattr(os, "execv", replace)
    return calls


def _run_python(*words):
    return subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=True)


@pytest.mark.parametrize("flag", ["--help", "--version"])
def test_help_and_version_take_less_than_a_second(flag):
    def used():
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    before = used()
    output = _run_python("-m", "hftl", flag).stdout

    assert used() - before < 1  # of processor time: the machine may be busy
    assert hftl.__version__ in output


@pytest.mark.parametrize("word", ["'--help'", "'--version'", "'trian'"])
def test_help_version_and_a_wrong_verb_import_no_heavy_library(word):
    code = f"import sys; from hftl.cli import main; main([{word}]); print(*sys.modules, file=sys.stderr)"

    loaded = set(_run_python("-c", code).stderr.split())

    assert "hftl.cli" in loaded
    assert not loaded & HEAVY


def test_help_lists_every_verb(capsys):
    for words in ([], ["-h"], ["--help"]):
        assert cli.main(words) == 0
        output = capsys.readouterr().out
        assert all(f"\n  {verb}" in output for verb in cli.VERBS)


def test_an_unknown_verb_names_the_nearest(capsys):
    assert cli.main(["trian", "--mode", "full"]) == 2
    assert "Unknown verb 'trian'. Did you mean 'train'?" in capsys.readouterr().err


def test_help_of_train_lists_our_flags_and_those_of_transformers(capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main(["train", "--help"])

    output = capsys.readouterr().out
    assert exit.value.code == 0
    for flag in ("--mode", "--model_name_or_path", "--train_file", "--learning_rate", "--per_device_train_batch_size"):
        assert f"\n  {flag} " in output, flag


@pytest.mark.parametrize(
    ("error", "code"), [(UserError("why"), 2), (TrainingDiverged("why"), 3), (OutOfResources("why"), 4)]
)
def test_an_error_with_an_exit_code_is_one_line_on_stderr(capsys, error, code):
    def fail():
        raise error

    assert cli.guarded(fail) == code
    assert capsys.readouterr() == ("", "hftl: why\n")


def test_an_interrupt_has_its_own_exit_code_and_a_bug_keeps_its_traceback(capsys):
    def fail(error):
        raise error

    assert cli.guarded(fail, KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "hftl: interrupted\n"
    with pytest.raises(ZeroDivisionError):
        cli.guarded(fail, ZeroDivisionError())


@pytest.mark.parametrize(
    "flag", [["--accelerate_config", "{}"], ["--accelerate_config={}"], ["--accelerate-config", "{}"]]
)
def test_accelerate_config_restarts_the_same_command_under_accelerate(execv, tmp_path, flag):
    config = tmp_path / "hardware.yaml"
    config.touch()
    words = [word.format(config) for word in flag]

    with pytest.raises(Launched):
        cli.main(["train", "run.yaml", "--seed", "3", *words, "--mode=peft", "--text_columns", "a", "b"])

    launcher = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(config),
        "-m",
        "hftl",
        "train",
    ]
    expected = [*launcher, "run.yaml", "--seed", "3", "--mode=peft", "--text_columns", "a", "b"]
    assert execv == [(sys.executable, expected)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--accelerate_config", "absent.yaml"], "There is no accelerate configuration 'absent.yaml'"),
        (["--accelerate_config="], "There is no accelerate configuration ''"),
        (["--accelerate_config"], "--accelerate_config needs a file"),
    ],
)
def test_a_missing_accelerate_configuration_starts_nothing(execv, capsys, monkeypatch, tmp_path, words, message):
    monkeypatch.chdir(tmp_path)

    assert cli.main(["train", "--mode", "full", *words]) == 2
    assert message in capsys.readouterr().err
    assert not execv


def test_the_launched_module_answers_the_words_it_is_given():
    """`-m accelerate.commands.launch` and `-m hftl train` are what the restarted command relies on."""
    words = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "-m", "hftl", "--version"]

    assert hftl.__version__ in _run_python(*words).stdout


def test_the_shipped_default_configuration_is_found():
    assert default_config("wordnet.yaml") == ROOT / "recipes" / "configs" / "wordnet.yaml"


def test_threads_hardly_spin_unless_the_user_says_so(monkeypatch):
    for given, found in ((None, "2000"), ("100", "100")):
        monkeypatch.setenv("GOMP_SPINCOUNT", given or "")
        if not given:
            monkeypatch.delenv("GOMP_SPINCOUNT")
        with pytest.raises(UserError):
            cli.run_recipe(["--unknown", "1"])
        assert os.environ["GOMP_SPINCOUNT"] == found
