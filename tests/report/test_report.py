"""The report: what it shows equals results.json, and it can be read offline, half-finished and by anyone."""

import copy
import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from hftl.errors import UserError
from hftl.report.figures import FIGURES as DRAWINGS
from hftl.report.figures import draw_figures, find_front
from hftl.report.formats import ScoreFormat, format_bytes, format_money, format_p, format_seconds
from hftl.report.html import render_page, write_report
from hftl.report.labels import spread
from hftl.report.markdown import render_markdown
from hftl.report.reading import complete
from hftl.report.style import COLOURS, LIGHT, SENTINELS, build_styles
from tests.report.fake_results import build_partial_results, build_results

FIGURES = ("learning-curves", "score-against-cost", "matrix", "calibration")
HOSTILE = "</svg></style><script>alert(1)</script>\"' onload=x $x^2$ | `a` [b](http://evil.example/) {{ 7*7 }} \x07"


class Page(HTMLParser):
    """Tables as caption -> rows of texts; all tags with their attributes; the visible text."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.tags, self.words = {}, [], []
        self._row = self._caption = self._cell = None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "caption":
            self._caption = ""
        elif tag == "tr":
            self._row = []
        elif tag in ("th", "td"):
            self._cell = ""

    def handle_endtag(self, tag):
        if tag == "caption":
            self._rows = self.tables.setdefault(self._caption, [])
            self._caption = None
        elif tag == "tr":
            self._rows.append(self._row)
        elif tag in ("th", "td"):
            self._row.append(self._cell)
            self._cell = None

    def handle_data(self, data):
        self.words.append(data)
        if self._caption is not None:
            self._caption += data
        elif self._cell is not None:
            self._cell += data

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def _write(folder, results):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    return write_report(folder)


def _read_page(path):
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def results():
    return build_results()


@pytest.fixture(scope="module")
def small(results):
    """Three arms and two sizes of the same results: quicker to draw."""
    names = {"majority", "lora", "full"}

    def is_in(row):
        return {row.get("arm", "lora"), row.get("a", "lora"), row.get("b", "lora")} <= names and row["size"] <= 256

    part = {name: [row for row in results[name] if is_in(row)] for name in ("cells", "summary", "pairs")}
    return results | part | {"arms": [arm for arm in results["arms"] if arm["name"] in names]}


@pytest.fixture(scope="module")
def path(tmp_path_factory, results):
    return _write(tmp_path_factory.mktemp("full"), results)


@pytest.fixture(scope="module")
def page(path):
    return _read_page(path)


def _parse(text):
    """Numbers of a field: `−1.2 to +3.4 %` -> [-1.2, 3.4]."""
    found = re.findall(r"[−+]?[\d,]*\.?\d+", text)
    return [float(number.replace("−", "-").replace(",", "")) for number in found]


def _titles(results):
    return {arm["name"]: arm["title"] for arm in results["arms"]}


def test_scores_and_intervals_shown_equal_those_of_the_file(page, results):
    rows = page.tables["Score and mean cost of one run, each arm at each size"]
    shown = {(row[0][2:], int(row[1].replace(",", ""))): row for row in rows[1:]}
    assert len(shown) == len(results["summary"]) == 28
    for row in results["summary"]:
        found = shown[_titles(results)[row["arm"]], row["size"]]
        expected = [100 * row[key] for key in ("mean", "low", "high", "min", "max", "std")]
        assert _parse(" ".join(found[3:7])) == pytest.approx(expected, abs=0.0501)
        assert _parse(found[7])[0] == pytest.approx(row["train_seconds"], rel=0.02, abs=0.0051)
    head, *compact = page.tables["Mean test score at each number of labels"]
    assert head == ["arm", "128", "256", "512", "1,024"]
    for row in compact:
        own = [entry["mean"] for entry in results["summary"] if _titles(results)[entry["arm"]] == row[0][2:]]
        assert [_parse(text)[0] for text in row[1:]] == pytest.approx([100 * mean for mean in own], abs=0.0501)


def test_differences_and_verdicts_shown_equal_those_of_the_file(page, results):
    titles, checked = _titles(results), 0
    for size in results["sizes"]:
        rows = page.tables[f"Differences at {size:,} labels"][1:]
        shown = {(row[0][2:], row[1][2:]): row for row in rows}
        for pair in (pair for pair in results["pairs"] if pair["size"] == size):
            row = shown[titles[pair["a"]], titles[pair["b"]]]
            expected = [100 * pair[key] for key in ("difference", "low", "high")]
            assert _parse(f"{row[2]} {row[3]}") == pytest.approx(expected, abs=0.0501)
            assert row[4][2:] == pair["verdict"]
            assert row[9] == ("claimed" if pair["is_primary"] else "explored")
            checked += 1
    assert checked == len(results["pairs"]) == 84


def test_every_cell_is_in_the_table_of_cells(page, results):
    rows = page.tables["Every cell"][1:]
    assert {row[-1] for row in rows} == {cell["folder"] for cell in results["cells"]}
    scores = {row[-1]: _parse(row[5])[0] for row in rows}
    assert scores == pytest.approx({c["folder"]: 100 * c["score"] for c in results["cells"]}, abs=0.0501)


def test_the_page_says_what_the_file_says_in_words(page, results):
    sentences = [results["verdict"]["headline"], *results["verdict"]["lines"], results["verdict"]["next_experiment"]]
    sentences += [*results["parity"]["equal"], *(flag["detail"] for flag in results["parity"]["flags"])]
    sentences += [row["sentence"] for row in results["crossovers"] + results["multipliers"]]
    sentences += [results["test_reads"]["sentence"], results["question"]["tuning_sentence"], results["command"]]
    sentences += [results["environment"]["cpu"], results["environment"]["packages"]["torch"]]
    assert [sentence for sentence in sentences if " ".join(sentence.split()) not in page.text] == []
    assert page.text.index(results["verdict"]["headline"]) < page.text.index("Learning curves")


def test_the_page_asks_for_nothing_from_outside(path, page):
    text = path.read_text(encoding="utf-8")
    policies = [attributes for tag, attributes in page.tags if attributes.get("http-equiv")]
    assert policies[0]["content"] == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert "http://" not in text and "https://" not in text and "@import" not in text
    assert {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "object", "embed", "form"} == set()
    for _, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "srcset", "action", "data"):
            assert attributes.get(name, "#").startswith("#")
    assert all(target.startswith("#") for target in re.findall(r"url\(['\"]?([^)]*)", text))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_drawings_follow_the_theme_and_can_be_read_aloud(path, page):
    text = path.read_text(encoding="utf-8")
    drawings = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert len(drawings) == len(FIGURES)
    assert all(drawing["role"] == "img" and len(drawing["aria-label"]) > 40 for drawing in drawings)
    assert [role for role, sentinel in SENTINELS.items() if sentinel in text] == []
    outside = {"--s"}
    used = set(re.findall(r"var\((--\w+)\)", text)) - outside
    assert used <= {f"--{role}" for role in COLOURS} | {"--line", "--warn"}
    assert len(set(re.findall(r"#[0-9a-f]{6}", "".join(re.findall(r"<svg.*?</svg>", text, re.DOTALL))))) == 0


def test_the_same_results_give_the_same_bytes(tmp_path, small):
    first, second = (_write(tmp_path / name, small).parent for name in ("first", "second"))
    for name in ("report.html", "report.md", *(f"figures/{figure}.png" for figure in FIGURES)):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_markdown_links_the_figures_beside_it(path, results):
    text = (path.parent / "report.md").read_text(encoding="utf-8")
    assert re.findall(r"\]\((figures/[\w-]+\.png)\)", text) == [f"figures/{name}.png" for name in FIGURES]
    for name in FIGURES:
        assert (path.parent / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert text.startswith(f"# {results['verdict']['headline']}\n")
    best = max(row["mean"] for row in results["summary"])
    assert f"| {100 * best:.1f} % |" in text
    tables = re.findall(r"(?:^\|.*\|\n)+", text, flags=re.MULTILINE)
    assert len(tables) >= 5
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


def test_hostile_names_are_text(tmp_path, small):
    hostile = json.loads(
        json.dumps(small).replace('"LoRA"', json.dumps(HOSTILE)).replace('"animal"', json.dumps(HOSTILE))
    )
    hostile |= {"name": HOSTILE, "command": HOSTILE}
    hostile["verdict"] |= {"headline": HOSTILE, "status": HOSTILE}
    path = _write(tmp_path, hostile)
    page = _read_page(path)
    assert "script" not in {tag for tag, _ in page.tags}
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert "<script>alert(1)</script>" in page.text and "{{ 7*7 }}" in page.text
    assert [tag for tag, _ in page.tags].count("svg") == len(FIGURES)
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    outside_of_code = re.sub(r"^(`{3,})\n.*?\n\1$", "", markdown, flags=re.MULTILINE | re.DOTALL)
    assert "<script" not in outside_of_code and not re.search(r"(?<!\\)\]\(http", outside_of_code)


def test_half_a_campaign_has_a_report_that_says_what_is_missing(tmp_path):
    page = _read_page(_write(tmp_path, build_partial_results()))
    assert "No answer yet" in page.text and "? undecided" in page.text
    assert "5 cells have not run and 1 failed" in page.text
    assert page.tables["Cells that have not run"][1][1:] == ["1,024", "1, 2, 3, 4, 5"]
    assert page.tables["Cells that failed"][1][-1] == "loss became NaN"
    for sentence in ("No two arms have a common seed", "No curve was fitted", "There is no money", "not recorded"):
        assert sentence in page.text
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == [
        "learning-curves.png", "score-against-cost.png",
    ]  # fmt: skip


def test_a_file_that_holds_only_its_schema_has_a_report(tmp_path):
    page = _read_page(_write(tmp_path, {"schema": 2}))
    assert "No verdict yet" in page.text and "No cell has a score yet" in page.text


@pytest.mark.parametrize("part", sorted(set(build_results()) - {"schema"}))
def test_any_part_may_be_missing(small, part):
    for value in (None, type(small[part])()):
        left = complete(small | {part: value})
        assert "Learning curves" in Page(render_page(left, {})).text
        assert "## Learning curves" in render_markdown(left, {}, "figures")


def test_of_a_long_verdict_the_middle_is_folded(small):
    lines = [f"Finding {number}." for number in range(12)]
    text = render_page(complete(small | {"verdict": small["verdict"] | {"lines": lines}}), {})
    before, folded = text.split("<summary>6 more findings</summary>")
    assert all(line in before for line in (*lines[:5], lines[-1]))
    assert all(line in folded and line not in before for line in lines[5:-1])


@pytest.mark.parametrize("part", ["arms", "cells", "summary", "pairs", "question", "cost", "calibration"])
def test_what_is_drawn_does_without_any_part(small, part):
    gone = {"summary": {"learning-curves", "score-against-cost"}, "pairs": {"matrix"}, "calibration": {"calibration"}}
    left = complete(small | {part: None})
    styles = build_styles(left)
    drawn = {name for name, (_, draw, _) in DRAWINGS.items() if draw(left, styles, LIGHT)}
    assert drawn == set(FIGURES) - gone.get(part, set())


def test_unknown_numbers_are_dashes_and_draw_nothing(tmp_path, results):
    empty = copy.deepcopy(results)
    for table in ("cells", "summary", "pairs", "arms"):
        for row in empty[table]:
            keep = {"arm", "size", "seed", "a", "b", "name"}
            row |= dict.fromkeys(set(row) - keep)
    for row in (*empty["per_class"]["rows"], *empty["calibration"]["bins"], *empty["cost"]["to_target"]):
        row |= dict.fromkeys(set(row) - {"arm", "label"})
    page = _read_page(_write(tmp_path, empty))
    assert page.tables["Differences at 1,024 labels"][1][2:5] == ["–", "–", "no verdict"]
    assert "None" not in page.text and "nan" not in page.text.split()
    assert [tag for tag, _ in page.tags].count("svg") == 1  # the matrix


def test_many_classes_show_the_pairs_confused_most(tmp_path, results):
    labels = [f"class {k}" for k in range(30)]
    counts = [[0] * 30 for _ in labels]
    counts[3][7], counts[5][1] = 41, 12
    confusion = {"size": 1024, "arm": "lora", "labels": labels, "counts": counts}
    page = _read_page(_write(tmp_path, build_partial_results() | {"confusion": confusion}))
    rows = page.tables["The pairs confused most often"]
    assert rows[1:] == [["class 3", "class 7", "41"], ["class 5", "class 1", "12"]]


def test_a_metric_that_is_no_share_keeps_its_unit(tmp_path):
    results = build_partial_results()
    results["question"] |= {"metric": "log_loss", "greater_is_better": False}
    page = _read_page(_write(tmp_path, results))
    mean = results["summary"][0]["mean"]
    assert f"{mean:.3f}" in page.tables["Mean test score at each number of labels"][1]
    assert "lower is better" in page.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "There is no results.json .* run that first"),
        ("{", "is broken: .* writes it anew"),
        ("[]", "holds a list; expected a JSON object"),
        ('{"schema": 1}', "has schema 1; this version of hftl reads 2"),
        ('{"schema": 2, "cells": {}}', "cells is a dict; expected a list"),
        ('{"schema": 2, "cells": [{"arm": "x"}]}', r"cells\[0\] lacks size, seed"),
        ('{"schema": 2, "summary": [{"arm": "x", "size": "9"}]}', r"summary\[0\].size is '9'; expected a number"),
        ('{"schema": 2, "confusion": {"labels": ["a"], "counts": []}, "verdict": 3}', "verdict is a int"),
        ('{"schema": 2, "confusion": {"labels": ["a", "b"], "counts": [[1, 2]]}}', "expected a table of 2 times 2"),
        ('{"schema": 2, "arms": [{"name": ["x"]}]}', r"arms\[0\].name is .*; expected a name"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, content, message):
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    with pytest.raises(UserError, match=message):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_nan_in_the_file_is_no_number(tmp_path):
    (tmp_path / "results.json").write_text('{"schema": 2, "summary": [{"arm": "x", "size": 9, "mean": NaN}]}')
    assert "nan" not in write_report(tmp_path).read_text().lower()


def test_only_final_cells_are_drawn_as_seeds(small):
    left = complete(small)
    extra = left["cells"][-1] | {"role": "tuning", "score": 0.99}
    draw = DRAWINGS["learning-curves"][1]
    drawn = {}
    for name, cells in (("final", left["cells"]), ("both", [*left["cells"], extra])):
        lines = draw(left | {"cells": cells}, build_styles(left), LIGHT).axes[0].lines
        drawn[name] = [list(line.get_ydata()) for line in lines]
    assert drawn["both"] == drawn["final"]
    assert [cell["score"] for cell in left["cells"] if cell["arm"] == "lora"] in drawn["final"]


def test_the_front_holds_what_nothing_beats_in_score_and_cost():
    rows = [{"cost": cost, "mean": mean} for cost, mean in ((1, 0.5), (2, 0.4), (2, 0.7), (3, 0.7), (9, 0.8))]
    assert [row["cost"] for row in find_front(rows, "cost", True)] == [1, 2, 9]
    assert [row["mean"] for row in find_front(rows, "cost", False)] == [0.5, 0.4]


def test_labels_are_moved_apart_and_keep_their_order():
    moved = spread([10.0, 11.0, 50.0, 10.5], gap=5, low=0, high=100)
    assert moved == pytest.approx([5.5, 15.5, 50.0, 10.5])
    assert min(spread([99.0, 99.5], gap=5, low=0, high=100)) == pytest.approx(95)


def test_numbers_have_one_form():
    share, other = ScoreFormat(True), ScoreFormat(False)
    assert (share.write(0.6125001), share.write(1.0), share.write(None)) == ("61.3 %", "100.0 %", "–")
    assert (share.write_difference(-0.031), share.write_differences(0.012, 0.05)) == ("−3.1", "+1.2 to +5.0")
    assert (other.write(1.2041), other.write_difference(0.5), other.write(float("inf"))) == ("1.204", "+0.500", "–")
    assert [format_seconds(value) for value in (0, 0.016, 4.06, 163.4, 1204)] == ["0", "0.02", "4.1", "163", "1,204"]
    assert [format_money(value) for value in (0, 12.4, 0.00123, 1e-9)] == ["0.00", "12.40", "0.0012", "< 0.0001"]
    assert [format_bytes(value) for value in (0, 999, 2_800_000)] == ["0 B", "999 B", "2.8 MB"]
    assert (format_p(0.0001), format_p(0.0312)) == ("< 0.001", "0.031")


def test_matplotlib_is_left_as_it_was():
    import matplotlib

    before = dict(matplotlib.rcParams)
    draw_figures(complete(build_partial_results()))
    assert dict(matplotlib.rcParams) == before


def test_the_report_loads_no_heavy_library_and_no_window_system():
    heavy = "{'torch', 'transformers', 'datasets', 'peft', 'matplotlib.pyplot', 'tkinter'}"
    code = f"import sys, hftl.report.html; sys.exit(', '.join(sorted({heavy} & set(sys.modules))) or 0)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (0, "")
