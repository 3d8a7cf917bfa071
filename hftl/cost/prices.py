"""What did labels and computing cost in money? Applies a dated price table to what a run's record says it used.

Prices are not part of a record, so runs on disk are priced anew whenever a price changes. It must not know what was
run, nor how many cells share a label.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hftl.cost.energy import estimate_energy, find_by_device, warn_once
from hftl.errors import UserError, unknown_name

DEFAULT_PRICES = Path(__file__).with_name("prices.yaml")
COMPUTE_BASES = ("rent", "electricity")


@dataclass(frozen=True)
class Prices:
    """A price table; `prices.yaml` says what each default is worth.

    Attributes:
        date: when the prices held, year-month-day.
        currency: of all prices.
        label: price of one labelled example.
        cpu_core_hour: rent of a processor core for an hour.
        gpu_hour: words of a device's name -> rent of one for an hour, with the cores beside it.
        electricity_kwh: price of a kilowatt-hour.
        compute_basis: what computing is charged by, `rent` or `electricity`; a rent has the electricity in it.
        cpu_core_watts: power of a busy core.
        gpu_watts: words of a device's name -> power under load.
        carbon_grams_per_kwh: CO2 equivalent of the grid.
    """

    date: str
    currency: str
    label: float
    cpu_core_hour: float
    gpu_hour: Mapping[str, float]
    electricity_kwh: float
    compute_basis: str
    cpu_core_watts: float
    gpu_watts: Mapping[str, float]
    carbon_grams_per_kwh: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self)


FIELDS = {field.name: field.type for field in dataclasses.fields(Prices)}


def load_prices(path: str | Path | None = None, overrides: Mapping[str, Any] | None = None) -> Prices:
    """Read a price table and change single values of it.

    Args:
        path: a YAML file with the keys of `Prices`, all of them; default: the one that hftl brings.
        overrides: key -> value, as a number or as text. Devices in `gpu_hour` and `gpu_watts` are added to the
            table's, or replace theirs.

    Raises:
        UserError: a key that does not exist or is missing, or a value that is not a number of 0 or more.
    """
    file = DEFAULT_PRICES if path is None else Path(path)
    values = _check(_read(file), str(file))
    if missing := sorted(FIELDS.keys() - values.keys()):
        raise UserError(f"{file} lacks {', '.join(missing)}. Copy {DEFAULT_PRICES} and change its values.")
    for name, value in _check({} if overrides is None else overrides, "prices").items():
        values[name] = values[name] | value if isinstance(value, dict) else value
    return Prices(**values)


def _read(file: Path) -> Any:
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"The price table {file} cannot be read: {error}. Name a YAML file.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is not valid YAML: {error}") from error


def _check(values: Any, where: str) -> dict[str, Any]:
    """Known keys with values of their type."""
    if not isinstance(values, Mapping):
        raise UserError(f"{where} must hold `key: value` pairs, found a {type(values).__name__}.")
    for name in values:
        if name not in FIELDS:
            raise unknown_name(f"key in {where}:", str(name), FIELDS)
    return {name: _convert(name, value, where) for name, value in values.items()}


def _convert(name: str, value: Any, where: str) -> Any:
    if FIELDS[name] is float:
        return _to_number(value, f"{name} in {where}")
    if FIELDS[name] is str:
        return _to_text(name, value, where)
    if not isinstance(value, Mapping):
        raise UserError(f"{name} in {where} is {value!r}; give `device: number` pairs, such as H100: 3.00.")
    return {str(device): _to_number(number, f"{name} of {device} in {where}") for device, number in value.items()}


def _to_text(name: str, value: Any, where: str) -> str:
    text = "" if value is None else str(value).strip()  # YAML makes a date of 2026-11-25, whose text is the same
    if not text:
        raise UserError(f"{name} in {where} is empty.")
    if name == "compute_basis" and text not in COMPUTE_BASES:
        raise unknown_name(f"compute_basis in {where}:", text, COMPUTE_BASES)
    return text


def _to_number(value: Any, what: str) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not (math.isfinite(number) and number >= 0):
        raise UserError(f"{what} is {value!r}; give a number of 0 or more.")
    return number


def price_cell(
    cost: Mapping[str, Any], environment: Mapping[str, Any], *, prices: Prices, num_workers: int = 1
) -> dict[str, float | None]:
    """`compute_money` and `label_money` of one cell; add them up only where nothing else was run on its labels.

    Computing is charged for all wall seconds, start-up and saving included: on a CPU for each thread as a core, on
    GPUs for each device, which cells that ran on it side by side share equally.

    Args:
        cost: of a run record, with `num_labels` (train and validation labels that the cell needed). `energy_kwh` in
            it counts before the estimate.
        environment: of a run record: `device`, `num_devices`, `num_threads`.
        prices: from `load_prices`.
        num_workers: cells side by side on the devices that `environment` counts. Workers that see one device each do
            not share: then it is 1.

    Returns:
        Both in `prices.currency`; None where the record or the prices do not say.
    """
    num_labels = cost.get("num_labels")
    return {
        "compute_money": _price_compute(cost, environment, prices, num_workers),
        "label_money": None if num_labels is None else num_labels * prices.label,
    }


def _price_compute(
    cost: Mapping[str, Any], environment: Mapping[str, Any], prices: Prices, num_workers: int
) -> float | None:
    seconds, device = cost.get("wall_seconds"), environment.get("device", "cpu")
    if seconds is None:
        return None
    num_threads, num_devices = environment.get("num_threads", 1), environment.get("num_devices", 1) / num_workers
    if prices.compute_basis == "electricity":
        kwh = cost.get("energy_kwh")
        if kwh is None:
            kwh = estimate_energy(seconds, device, num_threads, prices, num_devices=num_devices).kwh
        return None if kwh is None else kwh * prices.electricity_kwh
    if device == "cpu":
        return seconds / 3600 * num_threads * prices.cpu_core_hour
    rent = find_by_device(prices.gpu_hour, device)
    if rent is None:
        warn_once(device, "gpu_hour")
        return None
    return seconds / 3600 * num_devices * rent
