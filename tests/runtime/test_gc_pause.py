import gc
import subprocess
import sys

import pytest

from hftl.runtime.gc_pause import importing


@pytest.fixture
def before_any_run(monkeypatch):
    monkeypatch.delitem(sys.modules, "hftl.training.run", raising=False)
    frozen = gc.get_freeze_count()
    yield
    gc.enable()
    if not frozen:
        gc.unfreeze()


def test_the_collector_pauses_while_libraries_are_imported_and_leaves_them_out_afterwards(before_any_run):
    with importing():
        assert not gc.isenabled()
        made = [[] for _ in range(10)]
    assert gc.isenabled()
    assert not any(thing is made for thing in gc.get_objects())


def test_the_collector_works_again_after_a_failed_import(before_any_run):
    with pytest.raises(ImportError), importing():
        raise ImportError
    assert gc.isenabled()


def test_garbage_of_a_run_in_this_process_is_not_kept_for_good(monkeypatch):
    monkeypatch.setitem(sys.modules, "hftl.training.run", object())
    with importing():
        assert gc.isenabled()
        made = [[] for _ in range(10)]
    assert any(thing is made for thing in gc.get_objects())


@pytest.mark.slow  # a process that imports all
def test_train_imports_with_the_collector_paused():
    code = (
        "import gc, sys, hftl.cli as cli, hftl.runtime.gc_pause\n"
        "cli.main(['train', '--mode', 'full', '--no_such_flag'])\n"
        "sys.exit(0 if gc.get_freeze_count() > 100_000 and gc.isenabled() else 1)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
