from types import SimpleNamespace

import pytest

from hftl.cost import energy
from hftl.cost.energy import EnergyMeter, estimate_energy, find_by_device

POWER = SimpleNamespace(cpu_core_watts=10.0, gpu_watts={"H100": 700.0, "A10": 150.0, "A100": 400.0})
KWH = 3.6e6  # joules


class FakeClock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class FakeMachine:
    """A tree like /sys/class/powercap, whose counters are set by the test."""

    def __init__(self, root):
        self.root = root

    def add(self, zone, name, microjoules=0, end=262_143_328_850):
        folder = self.root / zone
        folder.mkdir(parents=True)
        (folder / "name").write_text(f"{name}\n")
        (folder / "max_energy_range_uj").write_text(f"{end}\n")
        self.set(zone, microjoules)

    def set(self, zone, microjoules):
        (self.root / zone / "energy_uj").write_text(f"{microjoules}\n")


@pytest.fixture
def machine(tmp_path):
    return FakeMachine(tmp_path)


@pytest.fixture
def clock():
    return FakeClock()


def _meter(machine, clock, device="cpu", **settings):
    return EnergyMeter(device, 2, POWER, rapl_root=machine.root, clock=clock, **settings)


@pytest.mark.parametrize(
    "device, expected",
    [
        ("NVIDIA H100 80GB HBM3", 700),
        ("nvidia h100", 700),
        ("NVIDIA A100-SXM4-80GB", 400),
        ("NVIDIA A10", 150),
        ("NVIDIA A10G", None),
        ("NVIDIA GH100", None),
        ("Radeon", None),
    ],
)
def test_a_device_is_found_by_whole_words(device, expected):
    assert find_by_device(POWER.gpu_watts, device) == expected


def test_of_several_keys_the_longest_counts():
    assert find_by_device({"A100": 1.0, "A100-PCIE-40GB": 2.0, "PCIE": 3.0}, "NVIDIA A100-PCIE-40GB") == 2.0
    assert find_by_device({}, "NVIDIA A100") is None


def test_estimate_is_power_times_seconds():
    assert estimate_energy(3600, "cpu", 4, POWER) == (pytest.approx(0.04), "estimated")
    assert estimate_energy(3600, "NVIDIA H100", 16, POWER, num_devices=2) == (pytest.approx(1.42), "estimated")
    assert estimate_energy(3600, "NVIDIA H100", 1, POWER).kwh == pytest.approx(0.71)


def test_power_of_an_unknown_device_is_said_once(caplog):
    energy.warn_once.cache_clear()
    for _ in range(5):
        assert estimate_energy(3600, "Unheard Of 9000", 4, POWER) == (None, "estimated")
    assert len(caplog.messages) == 1 and "gpu_watts" in caplog.text


def test_packages_and_memory_are_added_up_and_their_parts_are_not(machine, clock):
    for zone, name in (
        ("intel-rapl:0", "package-0"),
        ("intel-rapl:1", "package-1"),
        ("intel-rapl:0:0", "core"),
        ("intel-rapl:0:1", "uncore"),
        ("intel-rapl:0:2", "dram"),
        ("intel-rapl:2", "psys"),
        ("intel-rapl-mmio:0", "package-0"),
    ):
        machine.add(zone, name, 5_000_000)
    (machine.root / "intel-rapl").mkdir()  # the control type itself has no counter
    with _meter(machine, clock) as meter:
        for number, zone in enumerate(sorted(path.name for path in machine.root.glob("intel-*:*"))):
            machine.set(zone, 5_000_000 + 10**number * 1_000_000)
    # Sorted: mmio:0, 0, 0:0, 0:1, 0:2, 1, 2
    assert meter.read() == (pytest.approx((10 + 10_000 + 100_000) / KWH), "measured")


def test_a_counter_that_wraps_around_goes_on(machine, clock):
    machine.add("intel-rapl:0", "package-0", microjoules=990_000_000, end=1_000_000_000)
    with _meter(machine, clock) as meter:
        machine.set("intel-rapl:0", 20_000_000)
        assert meter.read().kwh == pytest.approx(30 / KWH)
        machine.set("intel-rapl:0", 900_000_000)
        meter.read()
        machine.set("intel-rapl:0", 100_000_000)
    assert meter.read() == (pytest.approx((30 + 880 + 200) / KWH), "measured")


@pytest.mark.parametrize("end", ["", "100"])
def test_a_wrap_of_unknown_length_is_not_called_measured(end, machine, clock):
    """A counter that fell without saying where it ends, or from above its end, was reset."""
    machine.add("intel-rapl:0", "package-0", microjoules=990_000_000, end=end)
    with _meter(machine, clock) as meter:
        machine.set("intel-rapl:0", 20_000_000)
        clock.now += 3600
    assert meter.read() == (pytest.approx(0.02), "estimated")


def test_counters_are_read_while_the_block_runs(machine, clock, monkeypatch):
    """Two wraps between two readings would go unseen."""
    machine.add("intel-rapl:0", "package-0", microjoules=0, end=1_000_000)
    monkeypatch.setattr(energy, "RAPL_SECONDS", 0.001)
    read, seen = energy._read_number, []

    def count(path):
        value = read(path)
        seen.append(value)
        return value

    monkeypatch.setattr(energy, "_read_number", count)
    with _meter(machine, clock) as meter:
        (thread,) = meter._threads
        for _ in range(5000):
            if len(seen) < 5:  # one at the start, the others by the thread
                thread.join(0.001)
        num_readings = len(seen)
    assert num_readings >= 5
    assert not thread.is_alive()


def test_without_counters_it_is_an_estimate(machine, clock):
    with _meter(machine, clock) as meter:
        clock.now += 1800
        assert meter.read() == (pytest.approx(0.01), "estimated")
        clock.now += 1800
    clock.now += 9999
    assert meter.read() == (pytest.approx(0.02), "estimated"), "the time after the block does not count"


@pytest.mark.parametrize("damage", ["missing", "text", "forbidden"])
def test_a_counter_that_cannot_be_read_makes_it_an_estimate(damage, machine, clock):
    machine.add("intel-rapl:0", "package-0", 5)
    machine.add("intel-rapl:1", "package-1", 5)
    counter = machine.root / "intel-rapl:1" / "energy_uj"
    counter.unlink()
    if damage == "text":
        counter.write_text("")
    elif damage == "forbidden":
        counter.mkdir()  # an OSError for root too
    with _meter(machine, clock) as meter:
        machine.set("intel-rapl:0", 10**9)
        clock.now += 3600
    assert meter.read() == (pytest.approx(0.02), "estimated")


def test_a_counter_lost_on_the_way_is_not_forgotten(machine, clock):
    """Back again, it does not say what was missed."""
    machine.add("intel-rapl:0", "package-0", 0)
    with _meter(machine, clock) as meter:
        (machine.root / "intel-rapl:0" / "energy_uj").unlink()
        meter.read()
        machine.set("intel-rapl:0", 10**9)
        clock.now += 3600
        meter.read()
        machine.set("intel-rapl:0", 2 * 10**9)
    assert meter.read().kind == "estimated"


def test_power_of_gpus_is_integrated(machine, clock):
    """Two devices from 100 to 300 W each over 10 s: 4 kJ, beside 1 kJ of the processor."""
    machine.add("intel-rapl:0", "package-0", 0)
    watts = [100.0]
    with _meter(machine, clock, "NVIDIA H100", num_devices=2, read_gpu_watts=lambda index: watts[0]) as meter:
        clock.now += 10
        watts[0] = 300.0
        machine.set("intel-rapl:0", 10**9)
    assert meter.read() == (pytest.approx(5000 / KWH, rel=0.01), "measured")


class NvmlError(Exception):
    """NVML's errors are neither RuntimeErrors nor OSErrors."""


@pytest.mark.parametrize("error", [ImportError, RuntimeError, NvmlError])
def test_power_that_cannot_be_read_makes_it_an_estimate(error, machine, clock):
    machine.add("intel-rapl:0", "package-0", 0)

    def fail(index):
        raise error("not supported")

    with _meter(machine, clock, "NVIDIA H100", read_gpu_watts=fail) as meter:
        machine.set("intel-rapl:0", 10**9)
        clock.now += 3600
    assert meter.read() == (pytest.approx(0.72), "estimated")


def test_gpu_alone_is_not_all_that_was_used(machine, clock):
    with _meter(machine, clock, "NVIDIA H100", read_gpu_watts=lambda index: 500.0) as meter:
        clock.now += 3600
    assert meter.read().kind == "estimated"


def test_a_meter_can_be_used_again(machine, clock):
    machine.add("intel-rapl:0", "package-0", 0)
    meter = _meter(machine, clock)
    for joules in (100, 250):
        with meter:
            machine.set("intel-rapl:0", joules * 10**6)
        expected = {100: 100, 250: 150}[joules]
        assert meter.read().kwh == pytest.approx(expected / KWH)


def test_threads_end_when_the_block_fails(machine, clock):
    meter = _meter(machine, clock, "NVIDIA H100", read_gpu_watts=lambda index: 1.0)
    with pytest.raises(ZeroDivisionError), meter:
        1 / 0  # noqa: B018
    assert len(meter._threads) == 2 and not any(thread.is_alive() for thread in meter._threads)


def test_a_counter_that_appears_later_makes_it_an_estimate(machine, clock):
    machine.add("intel-rapl:0", "package-0", "")
    with _meter(machine, clock) as meter:
        machine.set("intel-rapl:0", 10**9)
        clock.now += 3600
    assert meter.read() == (pytest.approx(0.02), "estimated")
