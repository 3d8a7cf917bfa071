"""Reading takes time in proportion to the file: a quadratic reader would take sixteen times as long for four times."""

import pytest

from benchmarks.reading import CONTENTS, fit_exponent, read_splits, read_stream, time_reading, write_wide

FACTOR = 4


def test_an_exponent_is_that_of_the_growth():
    assert fit_exponent([1, 2, 4], [0.1, 0.4, 1.6]) == pytest.approx(2)


@pytest.mark.parametrize("read", [read_splits, read_stream])
@pytest.mark.parametrize("kind", CONTENTS)
def test_four_times_the_bytes_take_less_than_ten_times_as_long(tmp_path, kind, read):
    name, build = CONTENTS[kind]
    seconds = []
    for size in (40_000, 40_000 * FACTOR):
        (tmp_path / name).write_text(build(size))
        seconds.append(time_reading(read, tmp_path / name, repeats=2))
    assert seconds[1] < max(10 * seconds[0], 0.5)


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_four_times_the_columns_take_less_than_ten_times_as_long(tmp_path, ending):
    seconds = [time_reading(read_splits, write_wide(tmp_path, width, ending), 2) for width in (100, 100 * FACTOR)]
    assert seconds[1] < 10 * seconds[0]
