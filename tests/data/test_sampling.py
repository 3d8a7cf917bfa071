"""Is the order of rows made from (seed, epoch) alone, and does a step hold the same rows however it is divided?"""

import datasets
import numpy as np
import pytest
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import DataLoader

from hftl.data.sampling import EpochSampler, SeededRows, StepBatchSampler, sort_by_length

LENGTHS = np.random.default_rng(0).integers(3, 200, 1000)


def build_sampler(num_rows=1000, *, seed=7, epoch=0, step_size=8, **kwargs):
    return EpochSampler(num_rows, seed, step_size=step_size, get_epoch=lambda: epoch, **kwargs)


def read_order(sampler):
    return [row for _, row in sampler]


def padding_fraction(order, batch_size):
    batches = [LENGTHS[order[start : start + batch_size]] for start in range(0, len(order), batch_size)]
    return 1 - LENGTHS.sum() / sum(batch.max() * len(batch) for batch in batches)


def rows_of_steps(num_rows, batch_size, *, accumulation_steps=1, num_processes=1, lengths=None, drop_last=False):
    """The rows of each optimizer step, over all processes, as accelerate deals the batches out."""
    shards = []
    for process in range(num_processes):
        step_size = batch_size * accumulation_steps * num_processes
        batches = StepBatchSampler(
            build_sampler(num_rows, step_size=step_size, lengths=lengths),
            batch_size,
            accumulation_steps=accumulation_steps,
            num_processes=num_processes,
            drop_last=drop_last,
        )
        shard = BatchSamplerShard(batches, num_processes=num_processes, process_index=process)
        found = [[row for _, row in batch] for batch in shard]
        assert len(found) == len(shard) == len(batches) // num_processes
        assert all(0 < len(batch) <= batch_size for batch in found)
        shards.append(found)
    assert len({len(shard) for shard in shards}) == 1  # or the processes would wait for each other for ever
    micro_steps = [sum(batches, []) for batches in zip(*shards, strict=True)]
    starts = range(0, len(micro_steps), accumulation_steps)
    return [sorted(sum(micro_steps[start : start + accumulation_steps], [])) for start in starts]


# --- EpochSampler ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["shuffled", "by length"])
@pytest.mark.parametrize("step_size", [1, 8, 300, 5000])
def test_an_epoch_is_a_permutation_of_the_rows(lengths, step_size):
    order = read_order(build_sampler(step_size=step_size, lengths=lengths))
    assert sorted(order) == list(range(1000))
    assert step_size == 5000 and lengths is not None or order != list(range(1000))


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["shuffled", "by length"])
def test_the_order_depends_on_seed_and_epoch_and_on_no_global_state(lengths):
    order = read_order(build_sampler(seed=1, epoch=2, lengths=lengths))
    np.random.seed(99)
    assert read_order(build_sampler(seed=1, epoch=2, lengths=lengths)) == order
    assert read_order(build_sampler(seed=1, epoch=3, lengths=lengths)) != order
    assert read_order(build_sampler(seed=2, epoch=2, lengths=lengths)) != order
    assert read_order(build_sampler(seed=2, epoch=1, lengths=lengths)) != order  # not of their sum


def test_the_epoch_is_asked_for_each_time_and_comes_with_every_row():
    epoch = 4
    sampler = EpochSampler(10, 0, step_size=2, get_epoch=lambda: epoch)
    first = list(sampler)
    epoch = 5
    second = list(sampler)
    assert {pair[0] for pair in first} == {4} and {pair[0] for pair in second} == {5}
    assert [row for _, row in first] != [row for _, row in second]


def test_grouping_by_length_saves_most_of_the_padding():
    shuffled, grouped = (read_order(build_sampler(lengths=lengths)) for lengths in (None, LENGTHS))
    assert padding_fraction(shuffled, 8) > 0.35
    assert padding_fraction(grouped, 8) < 0.05


def test_steps_grouped_by_length_come_in_random_order():
    """Otherwise training would go from long to short texts within each pool."""
    order = read_order(build_sampler(lengths=LENGTHS))
    means = [LENGTHS[order[start : start + 8]].mean() for start in range(0, 1000, 8)]
    falls = np.mean(np.diff(means) < 0)
    assert 0.35 < falls < 0.65


def test_batches_grouped_by_length_differ_between_epochs():
    """Sorting everything would put the same rows together in every epoch."""
    batches = [
        {frozenset(order[start : start + 8]) for start in range(0, 1000, 8)}
        for order in (read_order(build_sampler(epoch=epoch, lengths=LENGTHS)) for epoch in (0, 1))
    ]
    assert len(batches[0] & batches[1]) < 5


def test_a_short_last_step_stays_last():
    order = read_order(build_sampler(21, lengths=LENGTHS[:21]))
    assert len(order) == 21
    last_pool = set(order[16:])
    assert len(last_pool) == 5


def test_without_shuffling_rows_keep_their_order():
    assert list(build_sampler(5, epoch=3, is_shuffled=False)) == [(3, 0), (3, 1), (3, 2), (3, 3), (3, 4)]


# --- StepBatchSampler --------------------------------------------------------------------------------------------

DIVISIONS = {
    "two processes": {"batch_size": 4, "num_processes": 2},
    "accumulation": {"batch_size": 4, "accumulation_steps": 2},
    "both": {"batch_size": 2, "num_processes": 2, "accumulation_steps": 2},
    "four processes": {"batch_size": 2, "num_processes": 4},
    "one row at a time": {"batch_size": 1, "accumulation_steps": 8},
}


@pytest.mark.parametrize("num_rows", [5, 16, 21, 22, 23, 28])
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["shuffled", "by length"])
@pytest.mark.parametrize("division", DIVISIONS.values(), ids=DIVISIONS)
def test_an_optimizer_step_holds_the_same_rows_however_it_is_divided(division, lengths, num_rows):
    lengths = None if lengths is None else lengths[:num_rows]
    whole = rows_of_steps(num_rows, 8, lengths=lengths)
    assert sorted(sum(whole, [])) == list(range(num_rows))  # each row once in an epoch
    divided = rows_of_steps(num_rows, lengths=lengths, **division)
    assert divided == whole


def test_rows_are_repeated_only_where_a_step_has_fewer_than_processes():
    assert rows_of_steps(17, 4, num_processes=2)[:2] == rows_of_steps(17, 8)[:2]
    (row,) = rows_of_steps(17, 8)[2]
    assert rows_of_steps(17, 4, num_processes=2)[2] == [row, row]  # of which the mean loss is that of one


def test_drop_last_leaves_an_incomplete_step_out_for_every_division():
    whole = rows_of_steps(21, 8, drop_last=True)
    assert [len(step) for step in whole] == [8, 8]
    for division in DIVISIONS.values():
        assert rows_of_steps(21, drop_last=True, **division) == whole


def test_processes_get_rows_of_equal_length():
    """The longest rows of a sorted step would otherwise always go to the first process, and the others would wait."""
    batches = StepBatchSampler(build_sampler(step_size=16, lengths=LENGTHS), 8, accumulation_steps=1, num_processes=2)
    tokens = [
        sum(LENGTHS[row] for batch in BatchSamplerShard(batches, 2, process) for _, row in batch) for process in (0, 1)
    ]
    assert abs(tokens[0] - tokens[1]) < 0.01 * sum(tokens)


# --- SeededRows and evaluation order -----------------------------------------------------------------------------


def read_seeds(batch_size, num_workers=0, epoch=3, **options):
    rows = SeededRows(datasets.Dataset.from_dict({"content": list(range(12))}), seed=5)
    batches = StepBatchSampler(
        build_sampler(12, epoch=epoch, step_size=batch_size), batch_size, accumulation_steps=1, num_processes=1
    )
    loader = DataLoader(rows, batch_sampler=batches, collate_fn=list, num_workers=num_workers, **options)
    return {row["content"]: row["augmentation_seed"] for batch in loader for row in batch}


def test_the_seed_of_a_row_depends_on_seed_epoch_and_row_alone():
    seeds = read_seeds(batch_size=4)
    assert seeds == {row: (5, 3, row) for row in range(12)}
    assert read_seeds(batch_size=5) == seeds
    assert read_seeds(batch_size=4, epoch=2) == {row: (5, 2, row) for row in range(12)}


def test_workers_that_outlive_an_epoch_know_the_next_one():
    epoch = 0
    rows = SeededRows(datasets.Dataset.from_dict({"content": list(range(4))}), seed=5)
    sampler = EpochSampler(4, 0, step_size=2, get_epoch=lambda: epoch)
    batches = StepBatchSampler(sampler, 2, accumulation_steps=1, num_processes=1)
    loader = DataLoader(rows, batch_sampler=batches, collate_fn=list, num_workers=1, persistent_workers=True)
    for epoch in (0, 1):  # noqa: B007 - read by the sampler
        assert {row["augmentation_seed"][1] for batch in loader for row in batch} == {epoch}


def test_sort_by_length_goes_from_long_to_short_and_says_where_rows_came_from():
    rows = datasets.Dataset.from_dict({"row_id": [10, 11, 12, 13], "length": [2, 9, 2, 5]})
    ordered, order = sort_by_length(rows)
    assert ordered["length"][:] == [9, 5, 2, 2]
    assert [rows[int(index)] for index in order] == list(ordered)
    assert order.tolist() == [1, 3, 0, 2]  # equal lengths keep their order


def test_rows_without_a_length_keep_their_order():
    rows = datasets.Dataset.from_dict({"row_id": [3, 1, 2]})
    ordered, order = sort_by_length(rows)
    assert ordered is rows and order.tolist() == [0, 1, 2]
