"""Arms that read own texts without labels first: made once, charged always, said in the report, foreseen."""

import logging

import pytest

from hftl.compare import engines, study
from hftl.compare.cells import compute_key
from hftl.compare.plan import list_cells
from hftl.compare.results import read_cells
from hftl.errors import UserError
from hftl.report.markdown import render_markdown
from hftl.report.reading import read_results
from tests import tiny
from tests.compare.test_campaign import SHORT, run_here, start
from tests.compare.test_experiment import write
from tests.compare.test_parity import build_campaign, cells_of, check, set_frame

OWN = "pretrain_file: TEXTS, pretrain_steps: 4"
ARMS = f"arms: {{tfidf: , full: , own: {{mode: full, {OWN}}}, lora-own: {{mode: peft, {OWN}}}, "
ARMS += f"scratch-own: {{mode: scratch, {OWN}}}}}"
WITH_TEXTS = ("own", "lora-own", "scratch-own")


@pytest.fixture(scope="module")
def texts(data):
    (data / "own.txt").write_text("\n".join(row["text"] for row in tiny.make_texts(60, seed=5)) + "\n")
    return data / "own.txt"


@pytest.fixture(scope="module")
def whole(tmp_path_factory, data, texts):
    """A campaign in which two arms share a pretraining and a third has its own, and its results."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(engines.ENGINES, "local", run_here)
        patch.setenv("HFTL_CACHE", str(folder / "cache"))
        return (*start(folder, data, ARMS.replace("TEXTS", str(texts))), folder / "cache" / "pretrained")


def test_the_pretraining_is_made_once_for_all_cells_that_want_the_same(whole):
    campaign, results, made = whole
    assert results["failures"] == [] and results["missing"] == []
    assert len(list(made.iterdir())) == 2, "one from the checkpoint and one from random weights"
    found = {cell.folder.name: cell.record.model.get("pretrained") for cell in read_cells(campaign.folder)}
    assert sum(entry["is_new"] for entry in found.values() if entry) == 2
    assert sum(entry is not None for entry in found.values()) == 3 * 2


def test_what_an_arm_had_more_than_the_others_is_said_and_blocks_nothing(whole):
    _, results, _ = whole
    (flag,) = (flag for flag in results["parity"]["flags"] if flag["what"] == "pretraining on own texts")
    assert flag["severity"] == "notes" and flag["arms"] == sorted(WITH_TEXTS)
    assert "own: 4 steps on 48 texts without labels (96 read)" in flag["detail"] and "% of all FLOPs" in flag["detail"]
    assert not results["parity"]["is_blocked"], results["parity"]["flags"]


def test_its_operations_are_charged_to_each_cell_and_its_seconds_paid_for_once(whole):
    campaign, results, _ = whole
    flops = {row["arm"]: row["train_flops"] for row in results["cells"]}
    assert flops["own"] > 1.5 * flops["full"]
    cost = results["cost"]
    assert sum(cost["buckets"].values()) == pytest.approx(cost["worker_seconds"], rel=0.02)
    assert cost["compute_money"] < sum(row["compute_money"] for row in results["cells"])
    spent = sum(cell.record.spent_seconds for cell in read_cells(campaign.folder))
    assert spent <= cost["worker_seconds"]


def test_the_report_says_it(whole):
    campaign, _, _ = whole
    page = render_markdown(read_results(campaign.folder), {}, "figures")
    assert "pretraining on own texts" in page and "texts without labels" in page


def test_other_texts_make_another_cell(whole, texts):
    campaign, _, _ = whole
    cells = {cell.arm: cell for cell in list_cells(campaign.experiment, "text")}
    before = {arm: compute_key(cell, "data") for arm, cell in cells.items()}
    kept = texts.read_text()
    try:
        texts.write_text(kept + "one more\n")
        after = {arm: compute_key(cell, "data") for arm, cell in cells.items()}
    finally:
        texts.write_text(kept)
    assert {arm for arm in cells if before[arm] != after[arm]} == set(WITH_TEXTS)


def test_a_dry_run_foresees_each_pretraining_once_and_makes_none(tmp_path, data, texts, monkeypatch, caplog):
    monkeypatch.setitem(engines.ENGINES, "local", run_here)
    monkeypatch.setenv("HFTL_CACHE", str(tmp_path / "cache"))
    file = write(tmp_path, data, *SHORT, ARMS.replace("TEXTS", str(texts)))
    campaign = study.open_study(study.StudyOptions(file, tmp_path / "campaign", jobs=1))
    with caplog.at_level(logging.INFO):
        prediction = study.predict_study(campaign)
    assert not (tmp_path / "cache" / "pretrained").exists()
    first, second = (row for row in prediction.rows if row[0].role == "pretraining")
    assert (first[0].name, second[0].name) == ("own-pretraining-n60-seed0", "scratch-own-pretraining-n60-seed0")
    assert first[1] > 0 and not first[2]
    assert list(prediction.lines())[-1].startswith("10 of 10 cells left")
    study.run_study(campaign, "hftl compare")
    rows = study.predict_study(campaign).rows
    assert [is_made for cell, _, is_made in rows if cell.role == "pretraining"] == [True, True]


@pytest.mark.slow
def test_two_cells_side_by_side_make_it_once(tmp_path, data, texts, monkeypatch):
    monkeypatch.setenv("HFTL_CACHE", str(tmp_path / "cache"))
    arms = f"arms: {{own: {{mode: full, {OWN}}}, other: {{mode: full, learning_rate: 1e-3, {OWN}}}}}"
    campaign, results = start(tmp_path, data, arms.replace("TEXTS", str(texts)), jobs=2)
    assert results["failures"] == []
    found = [cell.record.model["pretrained"] for cell in read_cells(campaign.folder)]
    assert len(found) == 4 and sum(entry["is_new"] for entry in found) == 1
    assert len({entry["perplexity"] for entry in found}) == 1
    assert sum(results["cost"]["buckets"].values()) == pytest.approx(results["cost"]["worker_seconds"], rel=0.02)


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        ("words: {mode: tfidf, pretrain_file: TEXTS}", "The arm 'words' cannot be run: --pretrain_file pretrains an"),
        (
            "own: {mode: full, pretrain_file: nowhere.txt}",
            "The arm 'own' cannot be run: .*there is no file nowhere.txt",
        ),
        ("own: {mode: full, pretrain_file: 'bundled:wordnett'}", "Unknown bundled data set 'wordnett'"),
    ],
)
def test_an_arm_that_cannot_have_it_is_refused_before_anything_is_run(tmp_path, data, texts, arm, message):
    file = write(tmp_path, data, *SHORT, f"arms: {{full: , {arm.replace('TEXTS', str(texts))}}}")
    with pytest.raises(UserError, match=message):
        study.open_study(study.StudyOptions(file, tmp_path / "campaign"))


def pretrain(campaign, arm, **changes):
    entry = {"steps": 500, "num_texts": 900, "num_examples_seen": 16000, "perplexity": 9.0, "train_seconds": 50.0}
    for cell in cells_of(campaign, arm):
        cell["pretrained"] = entry | {"train_flops": 10**12}
        cell["train_flops"] += 10**12
    cells_of(campaign, arm)[0]["pretrained"] |= changes


def test_cells_of_one_arm_that_start_from_other_weights_are_a_warning():
    campaign = build_campaign()
    pretrain(campaign, "full", perplexity=9.5)
    flags = {flag["what"]: flag for flag in check(campaign)["flags"]}
    assert flags["more than one pretraining"]["severity"] == "warns"
    assert flags["more than one pretraining"]["arms"] == ["full"]
    assert "perplexity 9.5 against 9" in flags["more than one pretraining"]["detail"]


def test_a_budget_of_operations_is_one_of_the_training_on_labels():
    campaign = build_campaign()
    set_frame(campaign, "flops")
    pretrain(campaign, "full")
    parity = check(campaign)
    assert not parity["is_blocked"], parity["flags"]
    for cell in cells_of(campaign, "full"):
        del cell["pretrained"]
    assert check(campaign)["is_blocked"]
