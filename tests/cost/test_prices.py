import dataclasses
import json

import pytest
import yaml

from hftl.cost import energy
from hftl.cost.prices import DEFAULT_PRICES, Prices, load_prices, price_cell
from hftl.errors import UserError

HOUR = {"wall_seconds": 3600.0, "num_labels": 100}
CPU = {"device": "cpu", "num_devices": 1, "num_threads": 2}
H100 = {"device": "NVIDIA H100 80GB HBM3", "num_devices": 1, "num_threads": 16}
EASY = {"label": 0.5, "cpu_core_hour": 0.25, "gpu_hour": {"H100": 8.0}, "electricity_kwh": 0.5, "cpu_core_watts": 100}


@pytest.fixture
def prices() -> Prices:
    return load_prices(None, EASY)


def _write(path, **changes):
    values = yaml.safe_load(DEFAULT_PRICES.read_text()) | changes
    path.write_text(yaml.safe_dump({key: value for key, value in values.items() if value != "absent"}))
    return path


def _compute(environment, prices, **settings):
    return price_cell(HOUR, environment, prices=prices, **settings)["compute_money"]


def test_shipped_table_is_complete_and_goes_into_json():
    prices = load_prices()
    assert json.loads(json.dumps(prices.as_dict()))["date"] == prices.date == "2026-11-25"
    assert set(prices.gpu_hour) == set(prices.gpu_watts)
    assert prices.compute_basis == "rent"
    numbers = [value for value in dataclasses.asdict(prices).values() if isinstance(value, float)]
    assert len(numbers) == 5 and all(number > 0 for number in numbers)


def test_overrides_change_single_values_and_add_devices():
    prices = load_prices(None, {"label": "0.25", "gpu_hour": {"H100": 9, "B200": "6.5"}})
    assert (prices.label, prices.gpu_hour["H100"], prices.gpu_hour["B200"]) == (0.25, 9.0, 6.5)
    default = load_prices()
    assert prices.gpu_hour["A100"] == default.gpu_hour["A100"]
    assert prices.cpu_core_hour == default.cpu_core_hour
    assert default.label != 0.25


def test_a_file_of_ones_own_replaces_the_table(tmp_path):
    prices = load_prices(_write(tmp_path / "mine.yaml", currency="EUR", gpu_hour={"X1": 1}), {"label": 2})
    assert (prices.currency, prices.gpu_hour, prices.label) == ("EUR", {"X1": 1.0}, 2.0)


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"labl": 1}, "Unknown key in prices: 'labl'. Did you mean 'label'"),
        ({"cpu_core_hours": 1}, "Did you mean 'cpu_core_hour'"),
        ({"label": -1}, "label in prices is -1; give a number of 0 or more"),
        ({"label": "dear"}, "give a number"),
        ({"label": True}, "give a number"),
        ({"label": float("nan")}, "give a number"),
        ({"label": float("inf")}, "give a number"),
        ({"label": None}, "give a number"),
        ({"label": [1]}, "give a number"),
        ({"gpu_hour": 3}, "device: number"),
        ({"gpu_hour": {"H100": "much"}}, "gpu_hour of H100 in prices is 'much'"),
        ({"currency": ""}, "currency in prices is empty"),
        ({"compute_basis": "rental"}, "Did you mean 'rent'"),
        ([1], "must hold `key: value` pairs, found a list"),
        (0.1, "must hold `key: value` pairs, found a float"),
    ],
)
def test_mistakes_are_explained(overrides, message):
    with pytest.raises(UserError, match=message):
        load_prices(None, overrides)


def test_files_with_mistakes_are_explained(tmp_path):
    with pytest.raises(UserError, match="lacks label. Copy"):
        load_prices(_write(tmp_path / "short.yaml", label="absent"))
    with pytest.raises(UserError, match=r"Unknown key in .*more.yaml: 'lable'. Did you mean 'label'"):
        load_prices(_write(tmp_path / "more.yaml", lable=1))
    with pytest.raises(UserError, match="cannot be read"):
        load_prices(tmp_path / "none.yaml")
    for text, message in (("label: [", "not valid YAML"), ("", "found a NoneType"), ("- 1", "found a list")):
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(UserError, match=message):
            load_prices(tmp_path / "bad.yaml")


def test_a_core_hour_is_charged_for_each_thread(prices):
    assert price_cell(HOUR, CPU, prices=prices) == {"compute_money": 0.5, "label_money": 50.0}
    assert _compute(CPU, prices, num_workers=4) == 0.5, "cells side by side have threads of their own"


def test_a_device_hour_is_charged_once_for_the_cells_that_share_it(prices):
    assert _compute(H100, prices) == 8.0
    assert _compute(H100 | {"num_devices": 2}, prices) == 16.0
    for num_devices, num_workers in ((1, 4), (2, 2), (2, 4), (2, 1), (4, 2)):
        each = _compute(H100 | {"num_devices": num_devices}, prices, num_workers=num_workers)
        assert num_workers * each == pytest.approx(8.0 * num_devices), "an hour of all devices"


def test_electricity_is_charged_instead_of_rent(prices):
    prices = dataclasses.replace(prices, compute_basis="electricity")
    assert _compute(CPU, prices) == pytest.approx(2 * 0.1 * 0.5)
    assert _compute(H100, prices) == pytest.approx((2 * 0.1 + 0.7) * 0.5)
    assert _compute(H100, prices, num_workers=2) == pytest.approx((2 * 0.1 + 0.35) * 0.5), "cores are not shared"
    measured = price_cell(HOUR | {"energy_kwh": 4.0}, H100, prices=prices)
    assert measured["compute_money"] == 2.0
    assert price_cell(HOUR | {"energy_kwh": 0.0}, H100, prices=prices)["compute_money"] == 0.0


def test_what_the_record_or_the_table_lacks_is_none(prices, caplog):
    energy.warn_once.cache_clear()
    assert price_cell({}, {}, prices=prices) == {"compute_money": None, "label_money": None}
    unknown = H100 | {"device": "Some New Card"}
    for basis in ("rent", "electricity"):
        for _ in range(3):
            assert _compute(unknown, dataclasses.replace(prices, compute_basis=basis)) is None
    assert [message.split(" for ")[0] for message in caplog.messages] == [
        "The prices have no gpu_hour",
        "The prices have no gpu_watts",
    ]


def test_labels_cost_also_where_computing_is_unknown(prices):
    assert price_cell({"num_labels": 0}, {}, prices=prices)["label_money"] == 0.0
    assert price_cell({"num_labels": 10}, {}, prices=prices) == {"compute_money": None, "label_money": 5.0}


def test_an_old_record_is_priced_anew(tmp_path, prices):
    """Prices are not in the record: another table gives another price of the same file, which stays as it is."""
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"cost": HOUR, "environment": CPU}))
    before = path.read_bytes()
    record = json.loads(before)
    for factor in (1, 2, 10):
        table = dataclasses.replace(prices, label=0.5 * factor, cpu_core_hour=0.25 * factor)
        priced = price_cell(record["cost"], record["environment"], prices=table)
        assert priced == {"compute_money": 0.5 * factor, "label_money": 50.0 * factor}
    assert record == json.loads(before) and path.read_bytes() == before


def test_a_record_without_number_of_devices_is_of_one(prices):
    assert _compute({"device": H100["device"]}, prices) == 8.0
    assert _compute({}, prices) == 0.25
