"""How does a matplotlib figure become a file: an SVG element in the page's colours and font, or a light PNG?

No pyplot, no date, no address; the same figure gives the same bytes. It must not know what is drawn.
"""

import io
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hftl.report.style import LIGHT, SENTINELS

WIDTH = 860  # of a drawing, in points; one is a CSS pixel where the page is wide enough
FONT_SIZE = 12.5


@contextmanager
def plain_matplotlib() -> Iterator[None]:
    """Matplotlib's own defaults, whatever the user's matplotlibrc says, and ours on top; put back afterwards."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        # A script that DejaVu lacks: the page's own font has it, and the PNG shows boxes.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({
            "svg.fonttype": "none", "font.size": FONT_SIZE, "lines.linewidth": 2.0, "lines.markersize": 6.5,
            "axes.titlesize": FONT_SIZE, "axes.labelsize": FONT_SIZE, "xtick.labelsize": 12, "ytick.labelsize": 12,
            "axes.titlepad": 12, "axes.labelpad": 8, "xtick.major.size": 0, "ytick.major.size": 0,
        })  # fmt: skip
        yield


def write_svg(figure: Figure, name: str, title: str, description: str) -> str:
    """The picture as an element for an HTML page: no metadata, no addresses, colours and font of the page."""
    buffer = io.BytesIO()
    matplotlib.rcParams["svg.hashsalt"] = name  # ids: the same every time, and other ones in the next picture
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = buffer.getvalue().decode()
    view_box = re.search(r'viewBox="([\d. ]+)"', text).group(1)
    text = re.sub(r"^.*?<svg[^>]*>\s*<defs>\s*<style.*?</style>\s*</defs>", "", text, count=1, flags=re.DOTALL)
    text = text.replace('xlink:href="#', 'href="#').replace(' transform="rotate(-0 ', ' data-r="(')
    text = re.sub(r' data-r="[^"]*"', "", text)
    text = re.sub(r' id="([^"]*)"', lambda found: found[0] if f"#{found[1]}" in text else "", text)
    text = re.sub(r" font-family: [^;\"]*;", "", text)
    text = re.sub(r"\s*\n\s*", " ", text)  # also inside path data, where any white space will do
    for role, sentinel in SENTINELS.items():
        text = text.replace(sentinel, f"var(--{role})")
    # Below this width its words could not be read: the page lets it be moved sideways instead.
    narrowest = round(0.72 * float(view_box.split()[2]))
    label = f'style="min-width:{narrowest}px" role="img" aria-label="{_escape(f"{title}. {description}")}"'
    return f'<svg viewBox="{view_box}" {label}>{text.strip()}'


def write_png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=144, facecolor=LIGHT["paper"], metadata={"Software": None})
    return buffer.getvalue()


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")


def build_axes(height: float, left: float, right: float, colours: Mapping[str, str]) -> tuple[Figure, Axes]:
    """One pair of axes with a grid of horizontal lines; margins in points."""
    figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72, facecolor="none")
    top, bottom = 34, 50
    rectangle = (left / WIDTH, bottom / height, 1 - (left + right) / WIDTH, 1 - (top + bottom) / height)
    axes = figure.add_axes(rectangle, facecolor="none")
    tone_down(axes, colours)
    axes.grid(axis="y", color=colours["grid"], linewidth=1)
    return figure, axes


def tone_down(axes: Axes, colours: Mapping[str, str]) -> None:
    axes.set_axisbelow(True)
    axes.tick_params(colors=colours["muted"], pad=6)
    axes.xaxis.label.set_color(colours["muted"])
    axes.title.set_color(colours["ink"])
    axes._left_title.set_color(colours["ink"])
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(colours["muted"])
