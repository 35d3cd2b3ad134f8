import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from rayrun.report import Link, Report, figure
from rayrun.report.page import show

VOID = {"meta", "link", "br", "img", "hr"}


class Page(HTMLParser):
    """Checks that tags nest, and gathers what a test asks for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.sources: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if "id" in given:
            self.ids.append(given["id"])
        if tag == "a":
            self.links.append(given["href"])
        elif "href" in given:
            self.sources.append(given["href"])
        self.sources += [given[k] for k in ("src", "xlink:href") if k in given]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        if tag not in VOID:
            self.handle_starttag(tag, attrs)
            self.open.pop()
        else:
            self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture
def report() -> Report:
    report = Report("Evaluation", "test split")
    report.text("The *model* saw **33** rows.\n\n- one\n- `two`")
    report.heading("Metrics")
    report.table(
        ["model", "auc"], [["INFNet", 0.76], ["floor", None]], "Test rows", best={"auc": "max"}
    )
    for title in ("Loss", "Loss"):
        fig, axes = figure()
        axes.plot([1, 2], [1, 0], label="点击")
        axes.legend()
        report.heading(title, 3)
        report.plot(fig, caption="Training <loss>")
    report.details("config.yaml", "name: <x>")
    return report


def test_the_page_is_well_formed_with_unique_ids(report):
    page = Page(report.html())
    assert len(page.ids) == len(set(page.ids))


def test_the_table_of_contents_leads_to_every_heading(report):
    page = Page(report.html())
    assert page.links == ["#metrics", "#loss", "#loss-2"]
    assert {link[1:] for link in page.links} <= set(page.ids)


def test_the_page_needs_no_network_and_no_other_file(report):
    text = report.html()
    page = Page(text)
    assert all(source.startswith(("#", "data:")) for source in page.sources)
    assert "@import" not in text
    assert set(re.findall(r"url\(([^)]*)\)", text)) <= {f"#{name}" for name in page.ids}
    namespaces = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert set(re.findall(r"https?://[^\"'\s<)]+", text)) <= namespaces
    assert "<script" not in text


def test_what_people_write_is_escaped():
    report = Report("<script>alert(1)</script>")
    report.heading("a <b>")
    report.text(
        "x <img src=x onerror=y> `<i>` [bad](javascript:alert) [good](https://x.org/?a=1&b=2)"
    )
    report.table(["<u>"], [["<s>"]], "<caption>")
    text = report.html()
    for tag in ("<script", "<b>", "<img", "<i>", "<u>", "<s>", "<caption>", 'href="javascript'):
        assert tag not in text
    assert 'href="https://x.org/?a=1&amp;b=2"' in text


def test_columns_of_numbers_are_aligned_right_and_the_best_is_marked(report):
    text = report.html()
    assert '<th class="number">auc</th>' in text
    assert "<th>model</th>" in text
    assert '<td class="number best">0.7600</td>' in text
    assert '<td class="number">–</td>' in text


def test_lower_may_be_better():
    report = Report("x")
    report.table(["loss"], [[0.2], [0.1], [0.1]], best={"loss": "min"})
    assert report.html().count('class="number best"') == 2


def test_the_best_value_of_a_row_is_bold():
    report = Report("t")
    report.table(
        ["metric", "a", "b"], [["auc", 0.7, 0.8], ["loss", 0.5, 0.6]], best={"loss": "min"}
    )
    assert '<td class="number best">0.5000</td>' in report.html()
    assert report.html().count('class="number best"') == 1


def test_what_follows_a_line_break_in_a_cell_is_set_small():
    report = Report("t")
    report.table(["metric", "model"], [["auc", "0.7100\n[0.7000, 0.7200]"]])
    assert '<td class="number">0.7100 <small>[0.7000, 0.7200]</small></td>' in report.html()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"), (True, "yes"), (1234567, "1,234,567"), (-3, "−3"), (0.12345, "0.1235"), (0.0, "0.0000"),
        (1e-5, "1.00e−05"), (1234.56, "1,234.6"), (-0.5, "−0.5000"), (float("nan"), "–"), ("a-b", "a-b"),
    ],
)  # fmt: skip
def test_cells_are_readable(value, text):
    assert show(value) == text


def test_plots_take_the_colours_of_the_page_and_keep_their_text(report):
    svg = report.html().partition("<svg")[2].partition("</svg>")[0]
    assert "#000000" not in svg
    assert "#ffffff" not in svg
    assert "currentColor" in svg
    assert "var(--paper)" in svg
    assert "点击" in svg
    assert 'aria-label="Training &lt;loss&gt;"' in svg


def test_two_pages_of_the_same_content_are_the_same(report):
    fig, axes = figure()
    axes.plot([1, 2], [1, 0])
    pages = []
    for _ in range(2):
        page = Report("x")
        page.plot(fig)
        pages.append(re.sub(r"<footer>.*</footer>", "", page.html()))
    assert pages[0] == pages[1]


def test_markdown_in_code_is_left_alone():
    report = Report("x")
    report.text("`**a**` and 2*3*4\n\n1. first\n2. second\n   goes on\n\n```\n<code>\n**raw**\n```")
    text = report.html()
    assert "<code>**a**</code> and 2*3*4" in text
    assert "<ol><li>first</li><li>second goes on</li></ol>" in text
    assert "<pre>&lt;code&gt;\n**raw**</pre>" in text


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (
            lambda r: r.table(["a", "b"], [[1]], "t"),
            "row 0 of the table 't' must have 2 cells, found 1",
        ),
        (
            lambda r: r.table(["a"], [[1]], best={"a": "most"}),
            "best must be 'max' or 'min', found 'most'",
        ),
        (
            lambda r: r.table(["a"], [[1]], best={"b": "max"}),
            "best names the column or row 'b'; the table has: a",
        ),
        (lambda r: r.heading("a", 4), "level must be 2 or 3, found 4"),
    ],
)
def test_a_wrong_use_says_why(use, message):
    with pytest.raises(ValueError, match=message):
        use(Report("x"))


def test_the_report_is_written_atomically_and_matplotlib_comes_only_with_a_plot(report, tmp_path):
    report.write(tmp_path / "out/report.html")
    assert (tmp_path / "out/report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["report.html"]
    code = "import sys, rayrun.report as r; r.Report('x').html(); sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_cell_may_lead_to_another_page():
    report = Report("x")
    report.table(["step"], [[Link('a"b', "../a b.html")], [None]])
    assert '<td><a href="../a b.html">a&#34;b</a></td>' in report.html()
    assert "<td>–</td>" in report.html()
