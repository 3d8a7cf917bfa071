"""One comparison from the experiment file to its results: the page to read of `hftl compare`."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hftl.compare.budget import choose_steps, predict_pretrainings, predict_seconds, run_pilots
from hftl.compare.campaign import Campaign, describe_seconds, is_finished, open_campaign
from hftl.compare.engines import ENGINES, count_default_jobs
from hftl.compare.experiment import read_experiment
from hftl.compare.plan import Cell, DataFacts, inspect_data, list_cells
from hftl.compare.results import write_results
from hftl.compare.tune import tune
from hftl.errors import UserError, unknown_name


@dataclass(frozen=True)
class StudyOptions:
    """How a comparison is run here; what is compared is in the file.

    Attributes:
        jobs: cells side by side; None for one on each accelerator or core.
        command: as the user typed it, for the report.
    """

    file: Path
    folder: Path
    jobs: int | None = None
    engine: str = "local"
    keep_models: bool = False
    accelerate_config: str | None = None
    command: str = "hftl compare"


def open_study(options: StudyOptions) -> Campaign:
    """Read the file, load the data and check one against the other; nothing is run or written.

    Raises:
        UserError: what is wrong with either, or an unknown engine.
    """
    if options.engine not in ENGINES:
        raise unknown_name("engine", options.engine, ENGINES)
    if options.jobs is not None and options.jobs < 1:
        raise UserError(f"--jobs is {options.jobs}; give 1 or more.")
    if options.accelerate_config is not None and not Path(options.accelerate_config).is_file():
        raise UserError(f"There is no accelerate configuration {options.accelerate_config!r}.")
    experiment, facts = inspect_data(read_experiment(options.file))
    # A cell that is started by `accelerate launch` uses the whole machine.
    jobs = options.jobs or (1 if options.accelerate_config else count_default_jobs())
    return Campaign(
        experiment,
        facts,
        options.folder,
        num_workers=jobs,
        engine=options.engine,
        keep_models=options.keep_models,
        accelerate_config=options.accelerate_config,
    )


def run_study(campaign: Campaign, command: str) -> dict[str, Any]:
    """Run everything that is not finished and write the results, also of a campaign that is cut short.

    Returns:
        The content of `results.json`.

    Raises:
        UserError: a cap was reached, or the folder is another experiment's. What is finished is in the results.
    """
    experiment, facts = campaign.experiment, campaign.facts
    chosen, tuned = {}, {}
    with open_campaign(campaign):
        try:
            chosen, tuned = tune(campaign, facts.modality)
            if experiment.frame in ("flops", "wall_time"):
                steps = choose_steps(experiment, run_pilots(campaign, facts.modality), facts.modality)
                chosen = {place: chosen.get(place, {}) | steps.get(place, {}) for place in {*chosen, *steps}}
            campaign.run(list_cells(experiment, facts.modality, chosen), experiment.name)
        finally:
            campaign.write_session()
            results = write_results(campaign, chosen, tuned, command)
    return results


@dataclass(frozen=True)
class Prediction:
    """What is planned: each cell with the seconds it will take, whether it is finished, and the total."""

    rows: list[tuple[Cell, float, bool]]
    num_workers: int

    @property
    def seconds(self) -> float:
        """Of what is left, for all workers together."""
        return sum(seconds for _, seconds, is_done in self.rows if not is_done) / self.num_workers

    def lines(self) -> Iterable[str]:
        """A line a cell and the total."""
        for cell, seconds, is_done in self.rows:
            yield f"{cell.name:40} {'finished' if is_done else describe_seconds(seconds)}"
        cells = [(cell, is_done) for cell, _, is_done in self.rows if cell.role != "pretraining"]
        left = sum(not is_done for _, is_done in cells)
        yield f"{left} of {len(cells)} cells left, about {describe_seconds(self.seconds)}"


def predict_study(campaign: Campaign) -> Prediction:
    """Measure a few steps of each arm (pilots) and say what every cell will take. Nothing else is run."""
    experiment, facts = campaign.experiment, campaign.facts
    with open_campaign(campaign):
        pilots = run_pilots(campaign, facts.modality)
        steps = choose_steps(experiment, pilots, facts.modality)
        rows = predict_pretrainings(campaign, facts.modality)
        rows += [
            (
                cell,
                predict_seconds(experiment, cell, pilots[cell.arm], facts.modality, facts.num_rows["test"]),
                is_finished(campaign.job(cell)),
            )
            for cell in list_cells(experiment, facts.modality, steps)
        ]
    if experiment.trials:
        rows += _predict_trials(campaign, pilots)
    return Prediction(rows, campaign.num_workers)


def _predict_trials(campaign: Campaign, pilots: dict[str, Any]) -> list[tuple[Cell, float, bool]]:
    """Trials are as long as the cells of their size, without the test set."""
    experiment, facts = campaign.experiment, campaign.facts
    sizes = set(experiment.tuning_sizes)
    cells = {
        (cell.arm, cell.size): cell
        for cell in list_cells(experiment, facts.modality)
        if cell.size in sizes and experiment.arm(cell.arm).is_trained
    }
    return [
        (
            Cell(cell.arm, cell.size, 0, "tuning", cell.settings, trial),
            predict_seconds(experiment, cell, pilots[cell.arm], facts.modality, 0),
            False,
        )
        for cell in cells.values()
        for trial in range(experiment.trials)
    ]


def describe_status(campaign: Campaign) -> Iterable[str]:
    """How far the campaign is, without touching it."""
    experiment, facts = campaign.experiment, campaign.facts
    cells = list_cells(experiment, facts.modality)
    finished = [cell for cell in cells if is_finished(campaign.job(cell))]
    yield f"{experiment.name} in {campaign.folder}: {len(finished)} of {len(cells)} cells finished"
    for arm in experiment.arms:
        own = [cell for cell in cells if cell.arm == arm.name]
        yield f"  {arm.name:20} {sum(cell in finished for cell in own)} of {len(own)}"
    if experiment.trials or experiment.frame in ("flops", "wall_time"):
        yield "  (cells whose settings follow from trials or pilots are counted once these are done)"


def describe_data(facts: DataFacts) -> str:
    """One line about what the ladder draws from."""
    rows = ", ".join(f"{split} {count:,}" for split, count in facts.num_rows.items())
    return f"{len(facts.label_names)} classes; rows: {rows}" if facts.label_names else f"rows: {rows}"
