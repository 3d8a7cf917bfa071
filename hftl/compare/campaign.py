"""How does an experiment get done? Cells that are finished are never run again, and a kill loses running ones only.

A campaign folder holds `experiment.json`, one folder a cell under `cells/`, and a line for each session in
`sessions.jsonl`. It must not know how a cell is run or what its scores mean.
"""

import contextlib
import fcntl
import json
import logging
import shutil
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from hftl.compare.cells import CELL_FILE, STAGING, Job, compute_key
from hftl.compare.engines import ENGINES, count_devices
from hftl.compare.experiment import EXTENDABLE, Experiment
from hftl.compare.plan import Cell, DataFacts
from hftl.cost.prices import load_prices, price_cell
from hftl.errors import UserError
from hftl.metrics.base import Score
from hftl.records import RunRecord, write_atomically
from hftl.tasks import scores_of

logger = logging.getLogger(__name__)

EXPERIMENT_FILE, SESSIONS_FILE, LOCK_FILE = "experiment.json", "sessions.jsonl", "campaign.lock"


@dataclass
class Campaign:
    """One experiment, its folder, and how its cells are run.

    Attributes:
        fingerprint: of the data.
        num_workers: cells side by side.
    """

    experiment: Experiment
    facts: DataFacts
    folder: Path
    num_workers: int
    engine: str = "local"
    keep_models: bool = False
    accelerate_config: str | None = None
    started: float = field(default_factory=time.time)
    earlier: list[dict[str, Any]] = field(default_factory=list)  # sessions

    @property
    def score(self) -> Score:
        """What is known of the metric that the arms are compared by."""
        return scores_of(self.facts.problem_type)[self.experiment.metric]

    @property
    def cells_per_device(self) -> int:
        """Cells that share an accelerator; a worker sees one."""
        return max(1, -(-self.num_workers // count_devices()))

    def job(self, cell: Cell) -> Job:
        """The cell with the folder that its key names."""
        key = compute_key(cell, self.facts.fingerprint)
        folder = self.folder / "cells" / f"{cell.name}-{key}"
        return Job(cell, str(folder), key, self.keep_models, self.accelerate_config)

    def run(self, cells: list[Cell], description: str) -> None:
        """Run those of the cells that have no folder yet, as far as the caps allow.

        Raises:
            UserError: a cap on hours or money was reached; what is finished is kept.
        """
        jobs = [job for job in map(self.job, cells) if not is_finished(job)]
        if not jobs:
            return
        (self.folder / "cells").mkdir(parents=True, exist_ok=True)
        done = len(cells) - len(jobs)
        with tqdm(total=len(cells), initial=done, desc=description, unit="cell", disable=None) as bar:
            clock = TimeLeft(jobs, self.num_workers)
            for job in ENGINES[self.engine](jobs, num_workers=self.num_workers, may_start=self.may_start):
                self.write_session()  # a kill loses no more than the time of the running cells
                record = RunRecord.read(job.folder)
                pretrained = record.model.get("pretrained") or {}  # once, and not before every cell that is left
                clock.add(job.cell, record.cost["wall_seconds"] - pretrained.get("train_seconds", 0.0))
                bar.update()
                bar.set_postfix_str(f"{clock.describe()} left")
                logger.info("%s", _describe(job.cell, record, self.experiment.metric, clock))
        if reason := self.find_cap():
            raise UserError(f"{reason} What is finished is kept: raise the cap and run the same command to go on.")

    def may_start(self) -> bool:
        """Whether another cell may be begun."""
        return self.find_cap() is None

    def find_cap(self) -> str | None:
        """The cap that was reached, in words, or None."""
        hours = sum(session["wall_seconds"] for session in [*self.earlier, self.session()]) / 3600
        cap = self.experiment.max_hours
        if cap is not None and hours >= cap:
            return f"The campaign has run {hours:.2f} hours; max_hours is {cap:g}."
        if self.experiment.max_money is not None:
            spent = self.spent()
            if spent >= self.experiment.max_money:
                return f"The campaign has cost {spent:.2f} in compute; max_money is {self.experiment.max_money:g}."
        return None

    def session(self) -> dict[str, Any]:
        """This session until now."""
        seconds = time.time() - self.started
        return {
            "started": self.started,
            "wall_seconds": seconds,
            "num_workers": self.num_workers,
            "engine": self.engine,
        }

    def write_session(self) -> None:
        """Bring `sessions.jsonl` up to date."""
        lines = [json.dumps(line) + "\n" for line in [*self.earlier, self.session()]]
        write_atomically(self.folder / SESSIONS_FILE, "".join(lines).encode())

    def spent(self) -> float:
        """Compute money of every cell in the folder."""
        prices = load_prices(None, self.experiment.prices)
        records = [RunRecord.read(path) for path in list_cell_folders(self.folder)]
        options = {"num_workers": self.cells_per_device, "prices": prices}
        priced = [price_cell(r.cost | {"wall_seconds": r.spent_seconds}, r.environment, **options) for r in records]
        return sum(entry["compute_money"] or 0.0 for entry in priced)


class TimeLeft:
    """Seconds until the end: the mean of the finished cells of an arm and size, else of the arm, else of all."""

    def __init__(self, jobs: list[Job], num_workers: int) -> None:
        self.waiting = {job.folder: job.cell for job in jobs}
        self.num_workers = num_workers
        self.seconds: dict[Any, list[float]] = defaultdict(list)

    def add(self, cell: Cell, seconds: float) -> None:
        """A cell is finished."""
        self.waiting = {folder: other for folder, other in self.waiting.items() if other is not cell}
        for group in ((cell.arm, cell.size), cell.arm, None):
            self.seconds[group].append(seconds)

    def estimate(self) -> float:
        """Seconds, for all workers together."""
        return sum(self._expect(cell) for cell in self.waiting.values()) / self.num_workers

    def describe(self) -> str:
        """As `1 h 05 min` or `40 s`."""
        return describe_seconds(self.estimate())

    def _expect(self, cell: Cell) -> float:
        for group in ((cell.arm, cell.size), cell.arm, None):
            if values := self.seconds.get(group):
                return sum(values) / len(values)
        return 0.0


def describe_seconds(seconds: float) -> str:
    """As `1 h 05 min`, `3 min 20 s` or `40 s`."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


@contextlib.contextmanager
def open_campaign(campaign: Campaign) -> Iterator[Campaign]:
    """Hold the folder for this process, check that it belongs to the experiment, and write down the session's time.

    Raises:
        UserError: another process runs it, it was made by another experiment, or it holds something else.
    """
    folder = campaign.folder
    _check_folder(folder, campaign)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK_FILE).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"{folder} is being run by another process; --status shows how far it is.") from error
        for left in [*folder.glob(f"cells/{STAGING}*"), *folder.glob(f"pilots/{STAGING}*")]:
            shutil.rmtree(left, ignore_errors=True)
        content = {"raw": campaign.experiment.raw, "fingerprint": campaign.facts.fingerprint}
        write_atomically(folder / EXPERIMENT_FILE, json.dumps(content, indent=1).encode())
        with _session(campaign):
            yield campaign


@contextlib.contextmanager
def _session(campaign: Campaign) -> Iterator[None]:
    """One line of `sessions.jsonl` while and after it runs."""
    campaign.earlier = read_sessions(campaign.folder)
    campaign.write_session()
    try:
        yield
    finally:
        campaign.write_session()


def read_sessions(folder: Path) -> list[dict[str, Any]]:
    """The sessions that ended: start, seconds, workers."""
    path = folder / SESSIONS_FILE
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def is_finished(job: Job) -> bool:
    """Whether the cell's folder is in place, whatever became of the cell."""
    return (Path(job.folder) / CELL_FILE).is_file()


def list_cell_folders(folder: Path) -> list[Path]:
    """Every finished cell of a campaign, those of trials and of earlier settings too."""
    return sorted(path.parent for path in folder.glob(f"cells/*/{CELL_FILE}"))


def _check_folder(folder: Path, campaign: Campaign) -> None:
    if not folder.exists() or not any(folder.iterdir()):
        return
    path = folder / EXPERIMENT_FILE
    if not path.is_file():
        raise UserError(f"{folder} holds something other than a campaign. Give a new --output_dir.")
    before = json.loads(path.read_text(encoding="utf-8"))["raw"]
    now = campaign.experiment.raw
    changed = sorted(key for key in {*before, *now} - EXTENDABLE if before.get(key) != now.get(key))
    if changed:
        was, is_now = before.get(changed[0]), now.get(changed[0])
        raise UserError(
            f"{folder} was made by another experiment: {changed[0]} was {was!r} and is now {is_now!r}. "
            "Give a new --output_dir, or change it back."
        )


def _describe(cell: Cell, record: RunRecord, metric: str, clock: TimeLeft) -> str:
    seconds = record.cost.get("wall_seconds", 0.0)
    if record.status != "completed":
        return f"{cell.name}: {record.status} after {seconds:.0f} s: {record.error}"
    score = record.metrics["test" if cell.role == "final" else "validation"].get(metric)
    said = "" if score is None else f"{metric} {score:.4f}, "  # a pretraining has other scores
    return f"{cell.name}: {said}{seconds:.0f} s; {clock.describe()} left"
