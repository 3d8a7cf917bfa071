"""One training run, from arguments to a folder that anyone can load. This is the page to read."""

from collections.abc import Sequence

import transformers

from hftl.config import Arguments
from hftl.cost.ledger import Ledger
from hftl.cost.memory import PeakMemory
from hftl.hub.push import publish_run
from hftl.run_record import RunRecord
from hftl.runtime.lock import released
from hftl.runtime.resources import explained_resources
from hftl.training.outcome import add_samples, save_run, score_splits
from hftl.training.prepare import adapt_network, load_network, prepare_data, start_head, start_run
from hftl.training.resume_check import is_resumable
from hftl.training.run_folder import recorded
from hftl.training.setup import set_up
from hftl.training.signals import StopOnSignal, handled


@explained_resources()
@released()
def run(
    args: Arguments,
    *,
    started: float | None = None,
    stop: StopOnSignal | None = None,
    callbacks: Sequence[transformers.TrainerCallback] = (),
) -> RunRecord:
    """Train one model, evaluate it (on the test set once) and leave it in `args.training.output_dir`.

    Args:
        args: from `hftl.config.parse_args`.
        started: when the process started (`time.time()`), so that imports count as start-up.
        stop: ends training with a checkpoint when the process gets a signal; None leaves signals alone.
        callbacks: that training calls besides ours.

    Raises:
        UserError: the arguments or the data are wrong; nothing was trained or written.
        TrainingDiverged, OutOfResources, Interrupted: training ended early; `run.json` says so.
        PublishError: the run is complete in its folder, but not pushed.
    """
    ledger = Ledger(started)
    plan = start_run(args, ledger)
    data = prepare_data(plan, ledger, run)
    found = load_network(plan, data, ledger)
    head = start_head(plan, data, found, ledger)
    ready = adapt_network(plan, data, found, head, ledger)
    stop = stop if is_resumable(data.args) else None
    trainer, record, folder = set_up(plan, data, found, ready, ledger, [*([stop] if stop else []), *callbacks])
    with handled(stop), recorded(record, folder, ledger, trainer), PeakMemory() as memory:
        trainer.fit(found.checkpoint, is_trained=plan.mode.is_trained)
        kept = score_splits(plan, data, trainer, record)
        save_run(plan, data, trainer, record, folder, kept)
        add_samples(plan, data, trainer, record)
        record.cost |= memory.describe()
        record.history = trainer.list_losses()
    publish_run(data.args, plan.publication)
    return record
