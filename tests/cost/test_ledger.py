import time

import pytest

from hftl.cost.ledger import Ledger


class FakeClock:
    def __init__(self, now=100.0):
        self.now = now

    def __call__(self):
        return self.now

    def wait(self, seconds):
        self.now += seconds


@pytest.fixture
def clock():
    return FakeClock()


def _spent(ledger):
    return {name.removesuffix("_seconds"): value for name, value in ledger.seconds().items() if value}


def test_time_goes_to_the_open_bucket_and_otherwise_to_other(clock):
    ledger = Ledger(clock=clock)
    clock.wait(1)
    with ledger.bucket("train"):
        clock.wait(10)
    clock.wait(2)
    assert _spent(ledger) == {"wall": 13, "train": 10, "other": 3}


def test_an_inner_bucket_pauses_the_outer_one(clock):
    ledger = Ledger(clock=clock)
    with ledger.bucket("train"):
        clock.wait(10)
        with ledger.bucket("evaluation"):
            clock.wait(4)
            with ledger.bucket("save"):
                clock.wait(1)
            clock.wait(2)
        clock.wait(20)
    assert _spent(ledger) == {"wall": 37, "train": 30, "evaluation": 6, "save": 1}


def test_a_bucket_inside_itself_counts_once(clock):
    ledger = Ledger(clock=clock)
    with ledger.bucket("train"), ledger.bucket("train"):
        clock.wait(3)
    assert _spent(ledger) == {"wall": 3, "train": 3}


def test_a_bucket_is_closed_by_an_error(clock):
    ledger = Ledger(clock=clock)
    with pytest.raises(RuntimeError, match="diverged"), ledger.bucket("train"):
        clock.wait(5)
        raise RuntimeError("diverged")
    clock.wait(1)
    assert _spent(ledger) == {"wall": 6, "train": 5, "other": 1}


def test_the_figures_can_be_read_while_a_bucket_is_open(clock):
    ledger = Ledger(clock=clock)
    with ledger.bucket("train"):
        clock.wait(5)
        assert _spent(ledger) == {"wall": 5, "train": 5}
        clock.wait(5)
        assert _spent(ledger) == {"wall": 10, "train": 10}


def test_time_since_the_process_started_is_startup(clock):
    ledger = Ledger(1000.0, clock=clock, wall_clock=lambda: 1007.5)
    with ledger.bucket("startup"):
        clock.wait(2)
    assert _spent(ledger) == {"wall": 9.5, "startup": 9.5}


def test_a_wall_clock_that_was_set_back_does_not_make_time_negative(clock):
    assert _spent(Ledger(1000.0, clock=clock, wall_clock=lambda: 900.0)) == {}


def test_every_bucket_is_in_the_figures_from_the_start(clock):
    names = {"wall", "startup", "train", "evaluation", "save", "other"}
    assert Ledger(clock=clock).seconds() == {f"{name}_seconds": 0 for name in names}


def test_an_unknown_bucket_is_refused(clock):
    with pytest.raises(KeyError, match="'tea' is not one of"), Ledger(clock=clock).bucket("tea"):
        pass


def test_the_parts_add_up_to_the_real_wall_time():
    before = time.perf_counter()
    ledger = Ledger()
    for name in ("startup", "train", "evaluation", "save"):
        with ledger.bucket(name):
            time.sleep(0.002)
    figures = ledger.seconds()
    after = time.perf_counter()
    wall = figures.pop("wall_seconds")
    assert sum(figures.values()) == pytest.approx(wall, abs=1e-12)
    assert 0.008 <= wall <= after - before
