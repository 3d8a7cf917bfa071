"""A campaign runs each cell once, goes on where it was after a kill, and keeps what failed."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hftl.compare import engines, study
from hftl.compare.campaign import list_cell_folders, read_sessions
from hftl.compare.cells import Job, compute_key, hash_code, run_job
from hftl.compare.plan import list_cells
from hftl.errors import UserError
from hftl.run_record import RunRecord, read_predictions
from tests.compare.test_experiment import write

ROOT = Path(__file__).parents[2]
ALL_ARMS = ("arms: {majority: , tfidf: , probe: , lora: , full: , scratch: }", "sizes: [15, 30]")
SHORT = ("budget: steps", "max_steps: 3", "sizes: [30]", "arms: {tfidf: , full: }")


def run_here(jobs, *, num_workers, may_start):
    """Cells in this process: what the local engine does, without its workers."""
    for job in jobs:
        if not may_start():
            return
        run_job(job)
        yield job


@pytest.fixture
def inline(monkeypatch):
    monkeypatch.setitem(engines.ENGINES, "local", run_here)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, data):
    """A campaign of every kind of arm, and its results."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(engines.ENGINES, "local", run_here)
        return start(tmp_path_factory.mktemp("whole"), data, *ALL_ARMS)


def start(tmp_path, data, *lines, jobs=1, **options):
    file = write(tmp_path, data, *SHORT, *lines)
    campaign = study.open_study(study.StudyOptions(file, tmp_path / "campaign", jobs=jobs, **options))
    return campaign, study.run_study(campaign, "hftl compare experiment.yaml")


def finished(tmp_path):
    return {path.name: path.stat().st_mtime_ns for path in list_cell_folders(tmp_path / "campaign")}


def test_a_campaign_gives_every_cell_a_record_and_predictions_of_the_same_rows(whole):
    campaign, results = whole
    folders = list_cell_folders(campaign.folder)
    assert len(folders) == len(results["cells"]) == 6 * 2 * 2
    assert {row["status"] for row in results["cells"]} == {"completed"}
    rows = [read_predictions(folder) for folder in folders]
    assert all((table["row_id"] == rows[0]["row_id"]).all() for table in rows)
    assert all((table["label"] == rows[0]["label"]).all() for table in rows)
    assert not list(campaign.folder.rglob("*.safetensors")), "weights are kept only when that is asked for"
    assert not list(campaign.folder.rglob("canary.parquet")), "nor the rows that only a push of them would need"
    assert results["missing"] == [] and results["failures"] == []
    assert results["test_reads"]["total"] == 24
    assert not results["parity"]["is_blocked"], results["parity"]["flags"]


def test_chains_are_nested_and_the_same_for_every_arm(whole):
    prints = {}
    for folder in list_cell_folders(whole[0].folder):
        record = RunRecord.read(folder)
        place = (record.data["num_train_examples"], record.seed)
        prints.setdefault(place, set()).add(record.data["fingerprint"])
    assert len(prints) == 4
    assert all(len(found) == 1 for found in prints.values())


def test_finished_cells_are_never_run_again(tmp_path, data, inline):
    start(tmp_path, data)
    before = finished(tmp_path)
    _, results = start(tmp_path, data)
    assert finished(tmp_path) == before
    assert results["verdict"]
    _, results = start(tmp_path, data, "seeds: 3")  # more of the same experiment
    after = finished(tmp_path)
    assert {name: after[name] for name in before} == before
    assert len(after) == 2 * 3


def test_another_experiment_does_not_go_into_the_folder(tmp_path, data, inline):
    start(tmp_path, data)
    with pytest.raises(UserError, match="made by another experiment: max_steps was '3' and is now '4'"):
        start(tmp_path, data, "max_steps: 4")
    (tmp_path / "campaign" / "experiment.json").unlink()
    with pytest.raises(UserError, match="holds something other than a campaign"):
        start(tmp_path, data)


def test_a_cell_that_diverges_is_kept_and_shown(tmp_path, data, inline):
    arms = "arms: {majority: , full: , hot: {mode: full, learning_rate: 1e30}}"
    _, results = start(tmp_path, data, arms)
    assert {failure["arm"] for failure in results["failures"]} == {"hot"}
    assert {failure["status"] for failure in results["failures"]} == {"diverged"}
    assert "not finite" in results["failures"][0]["error"]
    before = finished(tmp_path)
    start(tmp_path, data, arms)
    assert finished(tmp_path) == before, "a failed cell is a result: it is not run again"


def test_the_seconds_of_the_buckets_add_up_to_the_workers_time(whole):
    campaign, results = whole
    cost = results["cost"]
    assert sum(cost["buckets"].values()) == pytest.approx(cost["worker_seconds"], rel=0.01)
    assert (
        0
        < cost["buckets"]["train"]
        < cost["worker_seconds"]
        <= sum(session["wall_seconds"] * session["num_workers"] for session in read_sessions(campaign.folder))
    )
    for row in results["cells"]:
        parts = sum(row[f"{name}_seconds"] for name in ("startup", "train", "evaluation", "save", "other"))
        assert parts == pytest.approx(row["wall_seconds"], rel=0.01)


def test_a_cap_on_hours_stops_the_campaign_and_keeps_what_is_there(tmp_path, data, inline):
    with pytest.raises(UserError, match="max_hours is 1e-09. What is finished is kept"):
        start(tmp_path, data, "max_hours: 0.000000001")
    results = json.loads((tmp_path / "campaign" / "results.json").read_text())
    assert len(results["missing"]) == 4 and results["summary"] == []
    _, results = start(tmp_path, data, "max_hours: 1")
    assert results["missing"] == []


def test_the_same_folder_is_not_run_twice_at_a_time(tmp_path, data, inline):
    import fcntl

    start(tmp_path, data)
    with (tmp_path / "campaign" / "campaign.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="being run by another process"):
            start(tmp_path, data)


@pytest.mark.slow
def test_trials_are_equal_in_number_and_never_score_the_test_set(tmp_path, data, inline):
    lines = (
        "trials: 3",
        "arms: {probe: , lora: , full: }",
        "ranges: {lora: {learning_rate: [1e-4, 1e-2]}, full: {learning_rate: [1e-5, 1e-3]}}",
    )
    campaign, results = start(tmp_path, data, *lines)
    trials = [row for row in results["cells"] if row["role"] == "tuning"]
    assert sorted(row["arm"] for row in trials) == ["full"] * 3 + ["lora"] * 3
    assert {row["seed"] for row in trials} == {0}
    for folder in list_cell_folders(campaign.folder):
        record = RunRecord.read(folder)
        assert ("test" in record.metrics) == (record.seed != 0)
    best = results["question"]["tuning"]["full"]["30"]["best"]["learning_rate"]
    rates = [
        RunRecord.read(folder).config["learning_rate"]
        for folder in list_cell_folders(campaign.folder)
        if folder.name.startswith("full-n30-seed1")
    ]
    assert rates == [pytest.approx(best)]
    before = finished(tmp_path)
    start(tmp_path, data, *lines)
    assert finished(tmp_path) == before
    assert results["cost"]["tuning_seconds"] > 0


def test_trials_without_a_range_say_what_to_add(tmp_path, data, inline):
    with pytest.raises(UserError, match="ranges says nothing about full.*add `ranges: {full"):
        start(tmp_path, data, "trials: 2")


@pytest.mark.slow
def test_under_equal_flops_the_arms_spend_the_same(tmp_path, data, inline):
    file = write(tmp_path, data, "budget: flops", "sizes: [30]", "seeds: 1", "arms: {lora: , full: {max_steps: 12}}")
    campaign = study.open_study(study.StudyOptions(file, tmp_path / "campaign", jobs=1))
    results = study.run_study(campaign, "hftl compare")
    flops = {row["arm"]: row["train_flops"] for row in results["cells"] if row["role"] == "final"}
    steps = {row["arm"]: row["num_steps"] for row in results["cells"] if row["role"] == "final"}
    assert steps["full"] == 12 != steps["lora"]  # an adapter of rank 16 is dear on 32 units
    assert flops["lora"] == pytest.approx(flops["full"], rel=0.1)


def test_a_dry_run_predicts_every_cell_and_runs_none(tmp_path, data, inline):
    file = write(tmp_path, data, *SHORT)
    campaign = study.open_study(study.StudyOptions(file, tmp_path / "campaign", jobs=1))
    prediction = study.predict_study(campaign)
    assert len(prediction.rows) == 4 and prediction.seconds > 0
    assert not [name for name in finished(tmp_path) if "seed2" in name]
    lines = list(prediction.lines())
    assert len(lines) == 5 and lines[-1].startswith("4 of 4 cells left")


def test_the_status_counts_cells_and_runs_none(tmp_path, data, inline):
    start(tmp_path, data)
    campaign = study.open_study(
        study.StudyOptions(write(tmp_path, data, *SHORT, "seeds: 4"), tmp_path / "campaign", jobs=1)
    )
    lines = list(study.describe_status(campaign))
    assert "4 of 8 cells finished" in lines[0]
    assert len(finished(tmp_path)) == 4


def test_the_key_of_a_cell_changes_with_what_decides_its_result(tmp_path, data, monkeypatch):
    campaign = study.open_study(study.StudyOptions(write(tmp_path, data, *SHORT), tmp_path / "campaign"))
    cell, other, *_ = list_cells(campaign.experiment, "text")
    key = compute_key(cell, "data")
    assert compute_key(cell, "data") == key
    assert len({key, compute_key(other, "data"), compute_key(cell, "other data")}) == 3
    hash_code.cache_clear()
    monkeypatch.setattr(Path, "read_bytes", lambda self: b"other code")
    assert compute_key(cell, "data") != key
    hash_code.cache_clear()


def command(tmp_path, data, *lines):
    file = write(tmp_path, data, *SHORT, *lines)
    words = [
        sys.executable,
        "-m",
        "hftl",
        "compare",
        str(file),
        "--output_dir",
        str(tmp_path / "campaign"),
        "--jobs",
        "2",
    ]
    return subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("num_kills", [1, pytest.param(10, marks=pytest.mark.exhaustive)])
def test_a_campaign_killed_at_any_moment_ends_like_an_undisturbed_one(tmp_path, data, inline, num_kills):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    killed.mkdir(), whole.mkdir()
    draw, seen = random.Random(0), {}
    for _ in range(num_kills):
        process = command(killed, data)
        begun = time.time()
        while time.time() < begun + 60 and not list(killed.glob("campaign/cells/_tmp-*")) and process.poll() is None:
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 1.5))  # in a cell, between two, or after the last one
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        time.sleep(1.5)  # the workers see that their parent is gone
        for name, stamp in finished(killed).items():
            assert seen.setdefault(name, stamp) == stamp, "a finished cell was run again"
    process = command(killed, data)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    table, (_, undisturbed) = json.loads((killed / "campaign" / "results.json").read_text()), start(whole, data)
    scores = [{(r["arm"], r["size"], r["seed"]): r["metrics"] for r in t["cells"]} for t in (table, undisturbed)]
    assert scores[0] == scores[1]
    assert table["pairs"] == undisturbed["pairs"]
    after = finished(killed)
    assert {name: after[name] for name in seen} == seen


@pytest.mark.slow
def test_cells_run_by_ray_are_those_of_this_process(tmp_path, data, inline):
    pytest.importorskip("ray")
    import ray

    lines = ("arms: {tfidf: , full: }", "sizes: [15]", "seeds: 1")
    (tmp_path / "here").mkdir(), (tmp_path / "there").mkdir()
    _, here = start(tmp_path / "here", data, *lines)
    try:
        _, there = start(tmp_path / "there", data, *lines, engine="ray", jobs=2)  # one thread each, as here
    finally:
        ray.shutdown()
    assert [row["metrics"] for row in here["cells"]] == [row["metrics"] for row in there["cells"]]


def test_a_worker_that_dies_twice_leaves_a_failed_cell(tmp_path, data, monkeypatch):
    campaign = study.open_study(study.StudyOptions(write(tmp_path, data, *SHORT), tmp_path / "campaign", jobs=1))
    (tmp_path / "campaign" / "cells").mkdir(parents=True)
    cell = list_cells(campaign.experiment, "text")[-1]
    job = campaign.job(cell)
    from hftl.compare.cells import record_loss

    record_loss(job, "The worker died 2 times.")
    record = RunRecord.read(job.folder)
    assert record.status == "failed" and "died 2 times" in record.error
    assert isinstance(job, Job)
