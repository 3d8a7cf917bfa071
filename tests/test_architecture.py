"""The layers of docs/architecture.md, read from the source: who imports whom, and how long a function is."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import house

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "hftl"

# What a part may import besides itself, from the bottom up.
# `tasks.base` is the protocol, `tasks.processors` what tasks load, `tasks` the files that follow the protocol.
BASE = {"errors", "runtime", "run_record", "config", "config.training_flags", "assets"}
SERVICES = {"data", "metrics", "cost", "training.checkpoints", "tasks.base", "tasks.processors", "tasks.positions"}
MAY_IMPORT = {
    "errors": set(),
    "runtime": {"errors"},
    "config.training_flags": {"errors"},
    "run_record": {"errors", "runtime"},
    "assets.scenes": set(),
    "assets": {"errors", "runtime", "assets.scenes"},
    "inference.outputs": {"errors"},
    "inference.doorkeeper": set(),
    "config.yaml_file": {"errors"},
    "inference": set(),
    "training": set(),
    "config": {
        "errors",
        "runtime",
        "config.training_flags",
        "config.yaml_file",
    },  # the resolved configuration is a file of the run folder, replaced whole as well
    **dict.fromkeys(SERVICES, BASE),
    "tasks": BASE | {"tasks.base", "tasks.processors", "tasks.positions", "data", "metrics"},
    "models": BASE | {"tasks.base", "tasks.processors", "tasks.positions"},
    "tasks.base": BASE | {"metrics"},
}
RUNS = (
    "training_data",
    "preview.audit",
    "training.class_weights",
    "training.precision",
    "training.head_init",
    "training.adapter_init",
    "training.progress",
    "training.signals",
    "training.spikes",
    "training.trainer",
    "training.speed",
    "training.run_folder",
    "training.auto_batch_size",
    "training.resume_check",
    "inference.source",
    "inference.run_rows",
    "inference.merge",
    "inference.predictor",
    "inference.predict",
    "inference.evaluation",
    "inference.demo",
    "inference.export",
    "training.tools",
    "training.settings",
    "training.continued_pretraining",
    "hub",
    "training.prepare",
    "training.setup",
    "training.outcome",
    "training.run",
    "preview.verify_resume",
    "baselines",
)  # each only those before it
for position, name in enumerate(RUNS):
    MAY_IMPORT[name] = BASE | SERVICES | {"tasks", "models", *RUNS[:position]}
MAY_IMPORT["inference.demo"] |= {"inference.doorkeeper"}
MAY_IMPORT["inference.predict"] |= {"inference.outputs"}
MAY_IMPORT["inference.export"] |= {"metrics.intervals"}
MAY_IMPORT["inference.evaluation"] |= {"metrics.intervals"}  # arithmetic alone: it knows no arms and no files
MAY_IMPORT["hub"] |= {"report"}  # a report is written anew for others, and cards are escaped as reports are
MAY_IMPORT["training.resume_check"] |= {"config.yaml_file"}  # the configuration of the run that it goes on with
# A comparison plans runs and reads their records; how a run works it does not know.
STUDIES = {
    *BASE,
    "training.run",
    "training.settings",
    "baselines",
    "training_data",
    "metrics",
    "cost",
    "tasks",
    "config.yaml_file",
    "data.subsets",
    "data.load",
}
STUDIES |= {"models.weights"}  # what decides the result of a cell, in a folder that may be trained again
STUDIES |= {"models.modes", "models.adapters"}  # the default schedules, which a plan must foresee, and names of arms
STUDIES |= {"training.continued_pretraining"}  # what its texts are and what it takes, which a plan must foresee
# What a run would take, told from its settings and without it; `probe` makes a few real steps.
MAY_IMPORT["preview"] = {*BASE, "cost", "tasks", "tasks.base", "tasks.positions", "models", "training.precision"}
MAY_IMPORT["preview.probe"] = {*BASE, "cost", "training.run"}
MAY_IMPORT |= {
    "compare": STUDIES | {"report"},  # `hftl.compare` itself can be called, and leaves a report
    "report": {"errors", "runtime", "run_record"},
    "api": {
        *BASE,
        "config.yaml_file",
        "inference.predictor",
        "training.run",
        "training.signals",
        "training.settings",
        "baselines",
    },
    "cli": {"", *MAY_IMPORT, "compare", "report", "api"},  # "" is the package itself: its version
    "__main__": {"cli"},
    "": {"config", "run_record", "api"},
}
ONLY_IMPORTER = {
    "evaluate": {"metrics"},
    "peft": {"models", "inference.merge", "inference.source", "inference.predictor", "hub"},
    "bitsandbytes": {"models"},
    "psutil": {"cost", "cli"},
    "onnxruntime": {"inference.export"},
    "gradio": {"inference.demo"},
}
MUST_NOT_IMPORT = {"report": {"torch", "transformers"}, "tasks": {"peft"}, "data": {"transformers", "peft"}}
OPTIONAL = {"bitsandbytes", "deepspeed", "ray"}  # extras, imported where they are asked for
OPTIONAL |= {"onnx", "onnxruntime", "onnxscript", "gradio"}
VAGUE_NAMES = {"utils", "util", "common", "helpers", "helper", "misc", "manager", "engine", "core"}
MAX_FUNCTION_LINES = 100


def _module_name(path):
    """`hftl/data/load.py` -> `data.load`, `hftl/data/__init__.py` -> `data`, `hftl/__init__.py` -> ``."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text()) for name, path in MODULES.items()}


def _part_of(module):
    return module if module in MAY_IMPORT else module.partition(".")[0]


def _find_imports(tree, modules):
    """(names of our modules, names of other packages) that `tree` imports anywhere, type checking included."""
    ours, others = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            package, _, module = name.partition(".")
            while package == "hftl" and module not in modules:  # the last word is something inside the module
                module = module.rpartition(".")[0]
            (ours if package == "hftl" else others).add(module if package == "hftl" else package)
    return ours, others


IMPORTS = {name: _find_imports(tree, MODULES) for name, tree in TREES.items()}


def _is_allowed(importer, imported):
    part = _part_of(importer)
    if _part_of(imported) == part:
        return True
    allowed = MAY_IMPORT[part]
    return imported in allowed or _part_of(imported) in allowed


@pytest.mark.parametrize(
    ("source", "ours"),
    [
        ("import hftl.data.load", {"data.load"}),
        ("from hftl.data import load", {"data.load"}),
        ("from hftl.data.load import load_splits", {"data.load"}),
        ("def f():\n    from hftl import assets", {"assets"}),
        ("from hftl import __version__", {""}),
        ("import torch.nn, numpy", set()),
    ],
)
def test_every_form_of_import_is_seen(source, ours):
    assert _find_imports(ast.parse(source), {"": 0, "data": 0, "data.load": 0, "assets": 0})[0] == ours


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("run_record", "config"), ("data.load", "metrics"), ("tasks.base", "tasks.text_classification"),
        ("tasks.text_classification", "models.modes"), ("models.head", "tasks"), ("training.trainer", "training.run"),
        ("compare.plan", "models.head"), ("training.run", "cli"), ("report.html", "compare.plan"), ("data.load", ""),
    ],
)  # fmt: skip
def test_an_upward_import_is_refused(importer, imported):
    assert not _is_allowed(importer, imported)


@pytest.mark.parametrize("module", MODULES, ids=lambda name: name or "hftl")
def test_a_module_imports_only_what_its_layer_may(module):
    assert _part_of(module) in MAY_IMPORT, f"give {module} a place in the table of layers"
    forbidden = sorted(name for name in IMPORTS[module][0] if not _is_allowed(module, name))
    assert not forbidden, f"hftl.{module} must not import {forbidden}"


@pytest.mark.parametrize("module", MODULES, ids=lambda name: name or "hftl")
def test_a_library_has_one_place_that_imports_it(module):
    part, libraries = _part_of(module), IMPORTS[module][1]
    assert not [name for name in libraries if part not in ONLY_IMPORTER.get(name, {part})]
    assert not libraries & MUST_NOT_IMPORT.get(part, set())


def test_what_is_imported_is_a_declared_dependency_and_the_other_way_round():
    project = (ROOT / "pyproject.toml").read_text().partition("dependencies = [")[2].partition("\n]")[0]
    declared = set(re.findall(r'^ +"([A-Za-z0-9_-]+)', project, flags=re.MULTILINE))
    renamed = {"sklearn": "scikit-learn", "PIL": "pillow", "yaml": "pyyaml"}
    imported = {renamed.get(name, name) for _, libraries in IMPORTS.values() for name in libraries}
    assert imported - sys.stdlib_module_names - OPTIONAL == declared


def _find_cycle(edges):
    """Take away modules that import nothing that is left; what stays imports itself in a circle."""
    left = dict(edges)
    while leaves := [name for name, targets in left.items() if not targets & left.keys()]:
        for name in leaves:
            del left[name]
    return sorted(left)


def test_no_module_imports_itself_in_a_circle():
    assert _find_cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["a", "b", "c"]
    assert _find_cycle({name: ours for name, (ours, _) in IMPORTS.items()}) == []


@pytest.mark.parametrize("module", ["hftl", "hftl.cli", "hftl.errors", "hftl.run_record"])
def test_a_light_import_loads_no_heavy_library(module):
    heavy = "{'torch', 'transformers', 'datasets', 'peft', 'numpy', 'pyarrow', 'evaluate', 'yaml'}"
    code = f"import sys, {module}; sys.exit(', '.join(sorted({heavy} & set(sys.modules))) or 0)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (0, "")


def test_the_public_names_are_there():
    import hftl

    for name in hftl.__all__:
        assert getattr(hftl, name)
    with pytest.raises(AttributeError, match="module 'hftl' has no attribute 'nothing'"):
        hftl.nothing  # noqa: B018


def test_no_function_is_longer_than_a_hundred_lines():
    sources = [*PACKAGE.rglob("*.py"), *(ROOT / "recipes").rglob("*.py"), *(ROOT / "scripts").rglob("*.py")]
    lengths = {
        f"{path.relative_to(ROOT)}:{node.name}": node.end_lineno - node.lineno + 1
        for path in sources
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert len(lengths) > 50
    assert {name: length for name, length in lengths.items() if length > MAX_FUNCTION_LINES} == {}


def test_no_module_has_a_name_that_says_nothing():
    assert [name for name in MODULES if VAGUE_NAMES & set(name.split("."))] == []


def test_only_the_command_line_prints():
    printing = {
        _part_of(name)
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    }
    assert printing <= {"cli"}


def test_every_module_says_what_it_is_for():
    assert [name for name, tree in TREES.items() if not ast.get_docstring(tree)] == []


def test_the_house_stays_low_and_has_no_arrow_that_runs_back():
    """What scripts/house.py prints; its docstring says what a room, a floor and an arrow are."""
    figures = house.measure()
    assert figures["rooms"] <= 28 and figures["floors"] <= 14
    assert figures["arrows that run back"] == 0 and figures["their climbs"] == 0
