"""Had all arms the same checkpoint, precision, hardware and code?"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from hftl.compare.parity.study import Cell, Finding, Rule, Study
from hftl.compare.parity.tools import (
    CHECKPOINT,
    INPUTS,
    PRECISION,
    compare_cells,
    gather,
    omits_defaults,
    read_hardware,
    read_precision,
    read_versions,
    see,
    take_settings,
)


def _find_differing(names: Sequence[str], study: Study) -> list[Finding] | None:
    """Arms that declare one of the settings may differ; the others must agree among themselves."""
    cells = [c for c in study.completed if study.is_trained(c["arm"]) or any(take_settings(c, *names).values())]

    def read(cell: Cell) -> dict[str, Any]:
        absent = "default" if study.is_trained(cell["arm"]) and omits_defaults(cell) else None
        return {name: absent if value is None else value for name, value in take_settings(cell, *names).items()}

    plain = [cell for cell in cells if not set(names) & study.settings(cell["arm"]).keys()]
    declared = {cell["arm"] for cell in cells} - {cell["arm"] for cell in plain}
    blocking, every = compare_cells(plain, read) or [], compare_cells(cells, read)
    if not every or not declared:
        return blocking or every
    odd = declared & set(every[0].arms)
    noted = sorted(odd or ([] if blocking else declared))  # the usual value may be the declared one
    return blocking + ([Finding(noted, every[0].detail, "notes")] if noted else [])


def _find_unequal_precision(study: Study) -> list[Finding] | None:
    """Arms without a network have no precision; a trained arm that states none is not known to be equal."""
    stated = [any(name in (cell.get("config") or {}) for name in PRECISION) for cell in study.completed]
    cells = [
        c for c, is_stated in zip(study.completed, stated, strict=True) if is_stated or study.is_trained(c["arm"])
    ]
    return compare_cells(cells, read_precision)


def _find_unequal_products(study: Study) -> list[Finding]:
    """What products are computed in where nobody has chosen: on a CPU that depends on the network."""
    trained = [cell for cell in study.completed if study.is_trained(cell["arm"])]
    return compare_cells(trained, lambda cell: {"precision": (cell.get("environment") or {}).get("precision")}) or []


def _read_pretraining(cell: Cell) -> Mapping[str, Any]:
    names = ("steps", "num_texts", "train_flops", "perplexity")
    return {name: (cell.get("pretrained") or {}).get(name) for name in names}


def _find_pretraining(study: Study) -> list[Finding]:
    """What an arm has read and spent before its first label: once for all of its cells, and charged to each."""
    pretrained = [cell for cell in study.completed if cell.get("pretrained")]
    details = []
    for arm in dict.fromkeys(cell["arm"] for cell in pretrained):
        own = [cell for cell in pretrained if cell["arm"] == arm]
        found = own[0]["pretrained"]
        shares = [cell["pretrained"]["train_flops"] / cell["train_flops"] for cell in own if cell.get("train_flops")]
        ends = dict.fromkeys(f"{end(shares):.0%}" for end in (min, max)) if shares else ()
        share = f", {' to '.join(ends)} of all FLOPs of its cells" if shares else ""
        details.append(
            f"{arm}: {found['steps']:,} steps on {found['num_texts']:,} texts without labels "
            f"({found['num_examples_seen']:,} read), {found['train_flops']:.2g} FLOPs{share}"
        )
    if not details:
        return []
    return [Finding(sorted({cell["arm"] for cell in pretrained}), "; ".join(details) + ".")]


def _find_unequal_pretraining(study: Study) -> list[Finding]:
    pretrained = [cell for cell in study.completed if cell.get("pretrained")]
    return compare_cells(pretrained, _read_pretraining, by=("arm",)) or []


def _find_quantized(study: Study) -> list[Finding]:
    noted, blocking = [], []
    for cell in study.completed:
        kind = take_settings(cell, "quantization")["quantization"]
        if kind in (None, "none"):
            continue
        is_frozen = study.arms[cell["arm"]].get("keeps_base", False)
        is_declared = study.settings(cell["arm"]).get("quantization") == kind
        text = f"{kind}, {'declared' if is_declared else 'not declared'}, {'frozen' if is_frozen else 'not frozen'},"
        (noted if is_frozen and is_declared else blocking).append(see(cell, "base", text))
    return gather(blocking, "blocks") + gather(noted)


def _find_unequal_hardware(study: Study) -> list[Finding] | None:
    return compare_cells(study.completed, read_hardware, severity="blocks" if study.frame == "wall_time" else None)


def _find_impure_seconds(study: Study) -> list[Finding]:
    cells = [(cell, cell.get("train_seconds_include")) for cell in study.completed]
    return gather(see(cell, "train_seconds", f"include {' and '.join(parts)}") for cell, parts in cells if parts)


RULES = [
    Rule(
        "different precision",
        "blocks",
        "A lower precision can cost an arm its score.",
        _find_unequal_precision,
        "The same numeric precision for every arm.",
    ),
    Rule(
        "different products",
        "notes",
        "Each network has the default for its kind and width; `settings: {bf16: false}` makes all of them float32.",
        _find_unequal_products,
    ),
    Rule(
        "pretraining on own texts",
        "notes",
        "That is what the arm is. It was made once, with one seed: that it might have come out otherwise is in no "
        "interval. Its seconds and FLOPs are in those of each cell; a budget is one of the training after it.",
        _find_pretraining,
    ),
    Rule(
        "more than one pretraining",
        "warns",
        "Cells of one arm should start from the same weights; every machine has a cache of its own.",
        _find_unequal_pretraining,
    ),
    Rule("quantized base", "notes", "Part of the arm where it is declared and frozen.", _find_quantized),
    Rule(
        "different checkpoint",
        "blocks",
        "Then the start differs, not only what is done with it.",
        partial(_find_differing, CHECKPOINT),
        "The same base checkpoint for every arm that has one.",
    ),
    Rule(
        "different inputs",
        "blocks",
        "The arms do not see the same part of a row.",
        partial(_find_differing, INPUTS),
    ),
    Rule(
        "different hardware",
        "warns",
        "No claim about cost: seconds and memory belong to a machine.",
        _find_unequal_hardware,
        "The same hardware for every cell, as far as stated.",
    ),
    Rule("training time with other work", "warns", "No claim about the cost of training.", _find_impure_seconds),
    Rule(
        "different versions",
        "blocks",
        "Another code may give another score with the same settings.",
        lambda study: compare_cells(study.completed, read_versions),
        "The same code and library versions for every cell, as far as stated.",
    ),
]
