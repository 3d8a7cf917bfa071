"""What can go wrong with a run, what the stock stack does then, what hftl does, and the test that says so.

`docs/reliability.md` holds the table that this makes: `python tests/faults/matrix.py` writes it. "Stock" is the
Trainer of transformers 5.23. A row without a test is open.
"""

from pathlib import Path
from typing import NamedTuple

DOCS = Path(__file__).parents[2] / "docs" / "reliability.md"
START, END = "<!-- table: faults -->", "<!-- end -->"
OPEN = "open"


class Row(NamedTuple):
    """One fault; `test` is `file::function` below `tests/`, or OPEN."""

    number: int
    fault: str
    stock: str
    ours: str
    test: str


DAMAGED, EXACT, SIGNALS = (
    "faults/test_damaged_checkpoints.py",
    "faults/test_exact_resume.py",
    "training/test_signals.py",
)
TRAINER, PROCESSES, WRONG = "training/test_trainer.py", "training/test_multiprocess.py", "faults/test_wrong_input.py"
END_OF_RUN, MEMORY = "faults/test_end_of_run.py", "faults/test_memory.py"

ROWS = [
    Row(1, "`kill -9` before any write of a save", "half a checkpoint under a checkpoint's name",
        "a staging folder, which the next run removes; the newest committed checkpoint is gone on with",
        f"{DAMAGED}::test_a_kill_before_any_write_of_a_save_leaves_a_whole_checkpoint_and_no_half_one"),
    Row(1, "`kill -9` at random moments of a run, again and again", "stops at half a checkpoint, if there is one",
        "the run that gets through equals the undisturbed one, bit for bit",
        "faults/test_random_kills.py::test_a_run_killed_at_random_moments_ends_as_the_undisturbed_one"),
    Row(1, "a kill while the final model is put in its place", "half a model",
        "nothing that loads: the weights come last, each file whole",
        f"{END_OF_RUN}::test_a_kill_while_the_final_model_is_put_in_its_place_leaves_nothing_that_loads"),
    Row(2, "a file of the newest checkpoint is truncated", "an exception",
        "passed over with a warning that names the file; the one before is taken",
        f"{DAMAGED}::test_any_damage_to_any_file_is_seen_and_the_checkpoint_before_is_taken"),
    Row(2, "no checkpoint counts", "an exception", "exit code 2, with the reason of each",
        f"{DAMAGED}::test_without_a_checkpoint_that_counts_every_reason_is_given"),
    Row(3, "`optimizer.pt`, `scheduler.pt` or `rng_state.pth` is missing", "goes on with a fresh one, silently",
        "passed over as above", f"{DAMAGED}::test_any_damage_to_any_file_is_seen_and_the_checkpoint_before_is_taken"),
    Row(4, "one bit of the weights is flipped", "goes on with other weights, silently", "passed over as above",
        f"{DAMAGED}::test_any_damage_to_any_file_is_seen_and_the_checkpoint_before_is_taken"),
    Row(5, "`checkpoint-N` is a file, a link, empty, or another step's", "follows the link; fails on the others",
        "passed over as above", f"{DAMAGED}::test_what_only_looks_like_a_checkpoint_is_passed_over"),
    Row(6, "there is no checkpoint", "an exception",
        "`auto` starts from the beginning and says so; `true` and `last` are an error",
        f"{DAMAGED}::test_auto_says_that_it_starts_from_the_beginning_and_needs_a_folder"),
    Row(7, "a cut inside an epoch, with length grouping, accumulation, adapters, evaluation",
        "other rows with length grouping; the first loss logged is another one",
        "losses, gradient norms, weights, scores and counts are those of the whole run, bit for bit on a CPU",
        f"{EXACT}::test_a_run_that_was_cut_ends_as_the_one_that_was_not"),
    Row(7, "a cut while early stopping counts, and the folder is moved", "counts from 0; the best is forgotten",
        "stops at the same step, with the same best weights",
        f"{EXACT}::test_early_stopping_counts_on_and_the_best_weights_are_found_after_a_move"),
    Row(7, "a cut with loader processes and dropout", "the same, without length grouping",
        "the same losses, norms and weights",
        f"{EXACT}::test_workers_and_a_cut_at_any_step_change_nothing"),
    Row(7, "a cut after the last step", "trains one more step", "trains none",
        f"{EXACT}::test_a_run_cut_after_its_last_step_trains_no_other"),
    Row(8, "going on with other data, network, labels, batch, seed or settings", "a warning at most",
        "refused with each difference, unless `--allow_change`",
        f"{EXACT}::test_another_run_is_refused_with_what_differs"),
    Row(8, "going on with another number of processes", "a warning at most", "the same",
        f"{EXACT}::test_another_number_of_processes_is_refused"),
    Row(9, "a new run into a folder with files", "mixes the checkpoints of both", "refused",
        f"{WRONG}::test_an_output_folder_that_holds_another_run"),
    Row(9, "going on from a checkpoint that is not the newest", "the later ones are taken for newer",
        "the later ones are renamed `superseded-checkpoint-N`",
        f"{DAMAGED}::test_later_checkpoints_of_a_branch_that_was_left_do_not_mix_with_new_ones"),
    Row(10, "SIGTERM before, in or after a step, in an evaluation, after a save", "dies without a save",
        "the step and what is due after it are finished, one checkpoint, exit code 75",
        f"{SIGNALS}::test_a_signal_finishes_the_step_and_saves_once_where_going_on_is_exact"),
    Row(10, "SIGTERM while a checkpoint is written", "dies with half a checkpoint",
        "that checkpoint is committed, one step more, one more checkpoint, exit code 75",
        f"{SIGNALS}::test_a_signal_while_a_checkpoint_is_written_does_not_cut_it_short"),
    Row(10, "SIGTERM twice", "dies without a save",
        "the second one ends the process at once; what was committed stays whole",
        f"{SIGNALS}::test_a_process_that_is_told_twice_leaves_at_once_and_what_was_committed_stays"),
    Row(11, "SIGTERM to one of two processes", "the launcher ends the job without a save",
        "all save the same step and stop",
        f"{PROCESSES}::test_one_of_two_processes_is_told_to_stop_and_both_save_and_go_on"),
    Row(11, "a process of two is killed", "the launcher ends the job", "the same, and the last checkpoint is whole",
        f"{PROCESSES}::test_a_process_that_dies_ends_the_job_with_a_message"),
    Row(12, "SIGINT (Ctrl-C)", "a traceback, no save", "as SIGTERM",
        f"{SIGNALS}::test_a_signal_finishes_the_step_and_saves_once_where_going_on_is_exact"),
    Row(13, "the disk is full in a save", "an opaque error, and half a checkpoint that ends the next start too",
        "nothing of the new checkpoint, the one before intact, wherever in the save it was",
        f"{DAMAGED}::test_a_full_disk_leaves_the_checkpoint_before_and_nothing_else"),
    Row(13, "the system refuses a file in a save: full, over a quota, too long", "as above",
        "exit code 4, nothing of the new checkpoint, the one before intact even as the only one that is kept",
        f"{WRONG}::test_a_file_that_the_system_refuses_ends_with_code_4_and_the_checkpoint_before_is_whole"),
    Row(13, "the disk has no room for the checkpoints asked for", "found out in the middle",
        "exit code 2 at the start",
        f"{WRONG}::test_no_room_on_the_disk"),
    Row(14, "old checkpoints are deleted", "by time; at the end the newest goes too",
        "by step, after the new one is committed; never the newest nor the best",
        f"{DAMAGED}::test_the_newest_and_the_best_are_never_deleted"),
    Row(15, "the loss becomes NaN", "logs 0 and trains on", "exit code 3; nothing is saved since",
        f"{TRAINER}::test_a_nan_loss_stops_the_run_at_its_step_and_nothing_is_saved_after"),
    Row(16, "a gradient becomes infinite", "saves NaN weights", "exit code 3 before that step is saved",
        f"{TRAINER}::test_a_gradient_that_is_not_finite_stops_the_run_before_the_weights_are_saved"),
    Row(16, "the loss jumps up", "trains on", "a warning with step, loss, usual loss and what to set; trains on",
        "training/test_spikes.py::test_a_run_names_the_step_and_what_is_usual_and_trains_on"),
    Row(17, "a learning rate of 1e30", "a plausible train loss", "exit code 3, and no model is left",
        f"{WRONG}::test_a_run_that_diverges_ends_with_code_3_and_leaves_no_model"),
    Row(18, "the metric that chooses the best is NaN", "no best, silently", "a warning with its name and the step",
        f"{TRAINER}::test_a_metric_that_is_not_a_number_is_named"),
    Row(18, "the best checkpoint was damaged when it is loaded at the end", "loads it, or logs that it is gone",
        "exit code 2, with the file that changed",
        f"{END_OF_RUN}::test_a_best_checkpoint_that_was_damaged_is_an_error_and_not_silent"),
    Row(19, "memory runs out in training", "restarts with trained weights, under `auto_find_batch_size`",
        "exit code 4 and what to set; checkpoints are intact, and with what is said the run goes on, the same within "
        "1e-6",
        f"{MEMORY}::test_memory_that_runs_out_in_training_ends_with_code_4_and_the_advice_goes_on"),
    Row(19, "the batch asked for does not fit", "as above",
        "`--auto_batch` divides it before the first step: losses and weights are the same within 1e-6",
        "training/test_auto_batch_size.py::test_the_result_is_that_of_the_batch_asked_for_and_goes_on_as_it_was_divided"),
    Row(19, "the process has a limit that the batch asked for does not fit in", "as above",
        "`--auto_batch` finds what fits below it: the run is the one that is divided so by hand, bit for bit",
        f"{MEMORY}::test_what_does_not_fit_is_divided_and_the_run_is_the_one_divided_by_hand"),
    Row(19, "the system kills the run, short of memory", "nothing is said",
        "the next start says that it was killed and what to set, and goes on from the last whole checkpoint",
        "runtime/test_lock.py::test_of_two_trainings_in_one_folder_the_second_is_refused_and_takes_over_when_the_first_"
        "was_killed"),
    Row(20, "memory runs out in evaluation", "an exception", "again with half the batch, with the same scores",
        f"{MEMORY}::test_memory_that_runs_out_in_evaluation_halves_its_batch_and_changes_no_result"),
    Row(20, "memory runs out in the evaluation of one of several processes", "an exception", "exit code 4",
        f"{TRAINER}::test_evaluation_out_of_memory_ends_several_processes"),
    Row(26, "a loader process is killed", "an exception", "exit code 4 and what to set; the last checkpoint goes on",
        f"{END_OF_RUN}::test_a_loader_process_that_is_killed_ends_with_code_4_and_the_run_goes_on"),
    Row(27, "predictions with length grouping", "in another order", "in the order of the rows",
        f"{TRAINER}::test_the_training_order_does_not_reach_predictions"),
    Row(28, "accumulation, or two processes, instead of a large batch", "the loss is a multiple for most heads",
        "the same losses and weights within 1e-6", f"{PROCESSES}::test_a_step_is_the_same_however_it_is_divided"),
    Row(34, "a pickle among the checkpoint's files", "`training_args.bin` needs full unpickling",
        "there is none; the stock Trainer reads the folder",
        f"{DAMAGED}::test_the_stock_trainer_reads_the_folder_and_without_any_pickled_argument"),
    Row(34, "a checkpoint of somebody else holds a pickle that runs code", "refused",
        "refused: tensors are read by `weights_only=True`",
        "test_security.py::test_a_pickle_in_a_checkpoint_of_a_run_is_not_run_on_resume"),
    Row(37, "the clock jumps, or the disk keeps no times", "deletes the wrong checkpoint", "goes by step",
        f"{DAMAGED}::test_the_newest_and_the_best_are_never_deleted"),
    Row(38, "two processes in one run folder", "they mix",
        "exit code 2 for the second, which says who is there; a killed one holds nothing",
        "runtime/test_lock.py::test_a_second_process_is_refused_and_told_who_is_there"),
]  # fmt: skip


def make_table() -> str:
    """The table of the docs, in Markdown."""
    lines = ["| | what happens | stock | hftl | tested |", "|---|---|---|---|---|"]
    for row in ROWS:
        tested = OPEN if row.test == OPEN else f"`{row.test.partition('::')[0]}`"
        lines.append(f"| {row.number} | {row.fault} | {row.stock} | {row.ours} | {tested} |")
    return "\n".join(lines)


def replace_table(text: str) -> str:
    """The page with the table of today."""
    before, rest = text.split(START)
    return f"{before}{START}\n{make_table()}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    DOCS.write_text(replace_table(DOCS.read_text()))
