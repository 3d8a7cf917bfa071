"""How does an arm look: its colour, marker and line, the same in every drawing and table?

Hues can be told apart by colour-blind readers, and none of them is the only sign of anything.
"""

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Results = Mapping[str, Any]  # what `hftl.report.reading.read_results` returns
GLYPHS = {"better": "▲", "worse": "▼", "equivalent": "=", "inconclusive": "?"}
VERDICT_ROLES = {"better": "good", "worse": "bad", "equivalent": "same", "inconclusive": "muted"}

# role -> (light, dark). The arms' hues are those of Okabe and Ito (jfly.uni-koeln.de/color, 2008), which colour-blind
# readers tell apart, darkened on white and lightened on black until text in them has a contrast of 4.5 to 1.
COLOURS = {
    "ink": ("#1c1d1f", "#e9e8e4"),
    "muted": ("#62656b", "#a3a6ab"),
    "grid": ("#e4e3de", "#34373b"),
    "paper": ("#ffffff", "#17191b"),
    "arm0": ("#0067a5", "#6cb8f0"),
    "arm1": ("#b84300", "#ff9457"),
    "arm2": ("#007556", "#35c99c"),
    "arm3": ("#a0437a", "#eba0cd"),
    "arm4": ("#8a6100", "#eec04a"),
    "arm5": ("#3b3fa8", "#a9adff"),
    "arm6": ("#1c1d1f", "#e9e8e4"),
    "arm7": ("#00747d", "#63d3dd"),
    "good": ("#0067a5", "#6cb8f0"),
    "bad": ("#b84300", "#ff9457"),
    "same": ("#007556", "#35c99c"),
}
LIGHT = {role: light for role, (light, _) in COLOURS.items()}
# Colours that occur nowhere else: in the SVG each is replaced by the CSS variable of its role.
SENTINELS = {role: f"#fe{position:02x}e7" for position, role in enumerate(COLOURS)}
NUM_ARM_COLOURS = sum(role.startswith("arm") for role in COLOURS)
MARKERS = {"o": "●", "s": "■", "^": "▲", "D": "◆", "v": "▼", "P": "✚", "X": "✖", "*": "★", "p": "⬟"}
LINE_STYLES = ("-", (0, (6, 2)), (0, (7, 2, 1.5, 2)), (0, (2, 1.5)), (0, (9, 2, 1.5, 2, 1.5, 2)))


@dataclass(frozen=True)
class ArmStyle:
    """How one arm looks in every drawing and table. `role` is a key of `COLOURS`, `glyph` its marker as a letter."""

    title: str
    role: str
    marker: str
    line: Any
    glyph: str
    is_chance: bool


def build_styles(results: Results) -> dict[str, ArmStyle]:
    """Arm name -> its style, in the order of `arms`; an arm that is only named elsewhere follows."""
    titles = {arm["name"]: arm["title"] or arm["name"] for arm in results["arms"]}
    roles = {arm["name"]: arm["role"] for arm in results["arms"]}
    named = [row["arm"] for row in (*results["summary"], *results["cells"])]
    named += [pair[side] for pair in results["pairs"] for side in ("a", "b")]
    for name in named:
        titles.setdefault(name, name)
    styles: dict[str, ArmStyle] = {}
    position = 0
    for name, title in titles.items():
        if roles.get(name) == "chance":
            styles[name] = ArmStyle(title, "muted", "None", (0, (1, 2.5)), "⋯", is_chance=True)
            continue
        marker = list(MARKERS)[position % len(MARKERS)]
        role, line = f"arm{position % NUM_ARM_COLOURS}", LINE_STYLES[position % len(LINE_STYLES)]
        styles[name] = ArmStyle(title, role, marker, line, MARKERS[marker], is_chance=False)
        position += 1
    return styles


def clean(text: Any, limit: int = 26) -> str:
    """One short line without control characters, which XML does not have."""
    line = "".join(" " if unicodedata.category(letter) in ("Cc", "Cs") else letter for letter in str(text))
    return line if len(line) <= limit else line[: limit - 1] + "…"
