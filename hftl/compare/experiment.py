"""What is compared? The experiment file: data, arms, ladder, seeds, tuning, budget, margin, prices.

It must not know the data, nor how a cell is run.
"""

import bisect
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hftl.baselines import BASELINES, Baseline
from hftl.compare.stats import alpha_at_look
from hftl.config import flag_names
from hftl.errors import UserError, unknown_name
from hftl.models.adapters import ADAPTERS
from hftl.models.modes import MODES, Mode, Role
from hftl.yaml_file import read_yaml

KINDS: dict[str, Mode | Baseline] = {**MODES, **BASELINES}
FRAMES = {
    "own_schedule": "Each arm follows its own default schedule, which has a floor on steps.",
    "convergence": "Each arm trains until its validation loss stops falling, five times its default steps at most.",
    "steps": "At each size every trained arm makes the same number of optimizer steps with the same batch.",
    "flops": "Each trained arm may spend the floating-point operations of the reference arm.",
    "wall_time": "Each trained arm may spend the training seconds of the reference arm on this machine.",
}
TUNING_SEED = 0  # the chain on which settings are chosen; it is never evaluated
CONVERGENCE_FACTOR = 5  # times the default steps, the cap of the frame `convergence`
# Settings that the plan itself makes, so that an arm cannot have its own.
PLANNED = {
    *("seed", "validation_seed", "num_train_examples", "num_train_examples_per_class", "num_validation_examples"),
    *("num_test_examples", "output_dir", "resume_from_checkpoint", "validation_fraction"),
}
# Changing these does not make another experiment of a folder: finished cells stay valid.
EXTENDABLE = {"seeds", "sizes", "sizes_per_class", "max_hours", "max_money", "prices", "target", "looks", "margin"}


@dataclass(frozen=True)
class Arm:
    """One competitor: a mode or a baseline with its settings, as data.

    Attributes:
        settings: flags of `hftl train`, `mode` included.
        ranges: flag -> (low, high), searched on a logarithmic scale when trials are asked for.
    """

    name: str
    title: str
    settings: dict[str, Any]
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def mode(self) -> str:
        return self.settings["mode"]

    @property
    def kind(self) -> Mode | Baseline:
        """What the arm is, as told by its mode or baseline."""
        return KINDS[self.mode]

    @property
    def is_trained(self) -> bool:
        """Whether there is a training loop."""
        return self.kind.role.is_trained

    @property
    def is_chance(self) -> bool:
        """Whether it looks at no input."""
        return self.kind.role is Role.CHANCE


@dataclass(frozen=True)
class Experiment:
    """The experiment file with its defaults filled in; `raw` is what was written."""

    name: str
    data: dict[str, Any]
    settings: dict[str, Any]
    arms: tuple[Arm, ...]
    sizes: tuple[int, ...]
    is_per_class: bool
    seeds: tuple[int, ...]
    trials: int
    tuning_sizes: tuple[int, ...]
    frame: str
    max_steps: tuple[int, ...]  # under the frame `steps`: one number, or one for each size from the smallest
    reference: str
    metric: str | None
    margin: float
    alpha: float
    looks: tuple[int, ...]
    target: float | None
    validation_fraction: float
    prices: dict[str, Any] | None
    max_hours: float | None
    max_money: float | None
    allow_small_test: bool
    raw: dict[str, Any]
    num_classes: int | None = None  # known once the data are

    def arm(self, name: str) -> Arm:
        """The arm of that name."""
        return next(arm for arm in self.arms if arm.name == name)

    def steps_at(self, size: int) -> int:
        """Optimizer steps under the frame `steps`; a size between two rungs has those of the smaller."""
        rung = max(bisect.bisect_right(self.sizes, size) - 1, 0)
        return self.max_steps[rung if len(self.max_steps) > 1 else 0]


def read_experiment(path: Path) -> Experiment:
    """Read an experiment file.

    Raises:
        UserError: an unknown key, arm, flag, metric or frame, or a value that makes no sense.
    """
    raw = read_yaml(path)
    known = {
        *("name", "data", "settings", "model_name_or_path", "arms", "sizes", "sizes_per_class", "seeds", "trials"),
        *("tuning_sizes", "ranges", "budget", "max_steps", "reference", "metric", "margin", "alpha", "looks"),
        *("target", "validation_fraction", "prices", "max_hours", "max_money", "allow_small_test"),
    }
    for key in raw:
        if key not in known:
            raise unknown_name(f"key in {path}:", str(key), known)
    data = _flags(raw.get("data"), "data")
    settings = _flags(raw.get("settings"), "settings")
    arms = _read_arms(raw, settings)
    per_class = raw.get("sizes_per_class")
    if (raw.get("sizes") is None) == (per_class is None):
        raise UserError(f"{path}: give the ladder once, as `sizes: [128, 512]` or as `sizes_per_class: [8, 32]`.")
    sizes = _integers(raw, "sizes" if per_class is None else "sizes_per_class")
    seeds = _read_seeds(raw.get("seeds", "5"))
    experiment = Experiment(
        name=_name(raw.get("name") or path.stem.removeprefix("compare-")),
        data=data,
        settings=settings,
        arms=arms,
        sizes=tuple(sorted(sizes)),
        is_per_class=per_class is not None,
        seeds=seeds,
        trials=int(_number(raw, "trials", 0)),
        tuning_sizes=_integers(raw, "tuning_sizes") if raw.get("tuning_sizes") else tuple(sorted(sizes)[-1:]),
        frame=raw.get("budget") or "own_schedule",
        max_steps=() if raw.get("max_steps") is None else _integers(raw, "max_steps", distinct=False),
        reference=raw.get("reference") or _default_reference(arms),
        metric=raw.get("metric"),
        margin=_number(raw, "margin", 0.02),
        alpha=_number(raw, "alpha", 0.05),
        looks=_integers(raw, "looks") if raw.get("looks") else (len(seeds),),
        target=None if raw.get("target") is None else _number(raw, "target", 0.0),
        validation_fraction=_number(raw, "validation_fraction", 0.2),
        prices=raw.get("prices"),
        max_hours=None if raw.get("max_hours") is None else _number(raw, "max_hours", 0.0),
        max_money=None if raw.get("max_money") is None else _number(raw, "max_money", 0.0),
        allow_small_test=str(raw.get("allow_small_test", "false")).lower() == "true",
        raw=raw,
    )
    _check_experiment(experiment)
    return experiment


def _read_arms(raw: dict[str, Any], settings: dict[str, Any]) -> tuple[Arm, ...]:
    """The arms, once for each checkpoint where several are named."""
    named = raw.get("arms")
    if not isinstance(named, dict) or not named:
        raise UserError(
            "The experiment has no arms. Name some: `arms: {tfidf: , probe: , lora: {mode: peft}, full: }`."
        )
    checkpoints = raw.get("model_name_or_path")
    checkpoints = checkpoints if isinstance(checkpoints, list) else [checkpoints]
    ranges, arms = raw.get("ranges") or {}, []
    for name in ranges:
        if name not in named:
            raise unknown_name("arm in ranges:", name, named)
    for name, own in named.items():
        own = dict(own) if isinstance(own, dict) else {} if own is None else {"mode": own}
        known = ADAPTERS.get(name) or KINDS.get(name)
        title = own.pop("title", None) or (known.title if known else name)
        if name in ADAPTERS and "mode" not in own:
            own = {"mode": "peft"} | ({} if name == "lora" else {"adapter": name}) | own
        own.setdefault("mode", name)
        if own["mode"] not in KINDS:
            raise unknown_name(f"mode of the arm {name!r}:", own["mode"], {*KINDS, *ADAPTERS})
        own = {"mode": own["mode"]} | _flags({key: own[key] for key in own if key != "mode"}, f"the arm {name!r}")
        search = {flag: _range(flag, limits) for flag, limits in (ranges.get(name) or {}).items()}
        has_network = own["mode"] in MODES or BASELINES[own["mode"]].has_network
        for checkpoint in checkpoints if has_network and "model_name_or_path" not in own else [None]:
            suffix = f"@{str(checkpoint).rsplit('/', 1)[-1].rsplit(':', 1)[-1]}" if len(checkpoints) > 1 else ""
            more = {"model_name_or_path": checkpoint} if checkpoint else {}
            suffix = suffix if checkpoint else ""
            arms.append(Arm(_name(name + suffix), title + suffix, own | more, search))
    return tuple(arms)


def _check_experiment(experiment: Experiment) -> None:
    """Mistakes that need no data to be seen."""
    names = [arm.name for arm in experiment.arms]
    if experiment.frame not in FRAMES:
        raise unknown_name("budget", experiment.frame, FRAMES)
    if (experiment.frame == "steps") != bool(experiment.max_steps):
        raise UserError("`budget: steps` and `max_steps: N` go together: one without the other says nothing.")
    if experiment.max_steps and (
        len(experiment.max_steps) not in (1, len(experiment.sizes)) or min(experiment.max_steps) < 1
    ):
        raise UserError(
            f"max_steps is {list(experiment.max_steps)} for {len(experiment.sizes)} sizes; give one number above 0, "
            "or one for each size, the smallest first."
        )
    if experiment.reference not in names:
        raise unknown_name("reference arm", experiment.reference, names)
    if len(names) < 2:
        raise UserError("One arm alone cannot be compared: name two or more.")
    for label, value, low, high in (
        ("margin", experiment.margin, 0, math.inf),
        ("alpha", experiment.alpha, 0, 0.5),
        ("validation_fraction", experiment.validation_fraction, 0, 1),
    ):
        if not low < value < high:
            raise UserError(f"{label} is {value}; give a number between {low} and {high}, neither included.")
    if experiment.trials < 0 or min(experiment.sizes) < 2 or min(experiment.seeds) < 1:
        raise UserError("Sizes are 2 or more, seeds 1 or more (chain 0 is kept for tuning), trials 0 or more.")
    silent = [arm.name for arm in experiment.arms if arm.is_trained and not arm.ranges]
    if experiment.trials and silent:
        raise UserError(
            f"trials is {experiment.trials}, but ranges says nothing about {', '.join(silent)}. Every trained arm is "
            f"tuned or none: add `ranges: {{{silent[0]}: {{learning_rate: [1e-5, 1e-3]}}}}`, or set trials to 0."
        )
    alpha_at_look(experiment.alpha, experiment.looks, len(experiment.seeds))


def _default_reference(arms: tuple[Arm, ...]) -> str:
    """The arm that the others are measured by: full fine-tuning, else the first that is trained, else the last."""
    whole = [arm for arm in arms if arm.kind.role is Role.TUNED and not arm.kind.keeps_base]
    trained = [arm for arm in arms if arm.is_trained]
    return (whole or trained or list(arms[::-1]))[0].name


def _flags(settings: Any, where: str) -> dict[str, Any]:
    """Flags of `hftl train`, each known and none that the plan makes itself."""
    if settings is None:
        return {}
    if not isinstance(settings, Mapping):
        raise UserError(f"{where} must hold `flag: value` lines, found {settings!r}.")
    known = set(flag_names().values())
    for name in settings:
        if name not in known:
            raise unknown_name(f"flag in {where}:", str(name), known)
        if name in PLANNED and not (where == "data" and name == "num_test_examples"):
            raise UserError(f"{where}: {name} follows from the plan (sizes, seeds); take it out.")
    return dict(settings)


def _range(flag: str, limits: Any) -> tuple[float, float]:
    try:
        low, high = (float(value) for value in limits)
    except (TypeError, ValueError) as error:
        raise UserError(f"ranges: {flag} is {limits!r}; give two numbers, such as [1e-5, 1e-3].") from error
    if not 0 < low < high:
        raise UserError(f"ranges: {flag} is [{low}, {high}]; the first must be above 0 and below the second.")
    return low, high


def _number(raw: dict[str, Any], key: str, default: float) -> float:
    try:
        value = float(raw.get(key, default))
    except (TypeError, ValueError) as error:
        raise UserError(f"{key} is {raw[key]!r}; give a number.") from error
    if not math.isfinite(value):
        raise UserError(f"{key} is {raw[key]!r}; give a finite number.")
    return value


def _integers(raw: dict[str, Any], key: str, *, distinct: bool = True) -> tuple[int, ...]:
    values = raw[key] if isinstance(raw[key], list) else [raw[key]]
    try:
        numbers = tuple(int(value) for value in values)
    except (TypeError, ValueError) as error:
        raise UserError(f"{key} is {raw[key]!r}; give whole numbers, such as [64, 256, 1024].") from error
    if (distinct and len(set(numbers)) < len(numbers)) or not numbers:
        raise UserError(f"{key} is {raw[key]!r}; give different numbers, at least one.")
    return numbers


def _read_seeds(value: Any) -> tuple[int, ...]:
    """A list of chains, or how many: 3 means chains 1, 2 and 3."""
    numbers = _integers({"seeds": value}, "seeds")
    return numbers if isinstance(value, list) else tuple(range(1, numbers[0] + 1))


def _name(text: str) -> str:
    """A name that is safe as a part of a path."""
    if not text or not all(character.isalnum() or character in "-_.@" for character in text) or text[0] == ".":
        raise UserError(f"{text!r} cannot be a name here: use letters, digits, '-', '_' and '.'.")
    return text
