import re
from html.parser import HTMLParser

import pytest
from jinja2 import UndefinedError
from markupsafe import Markup
from PIL import Image

from modeling_decodepos.drawing.page import (
    MINUS,
    Bar,
    bars,
    charts,
    code_block,
    details,
    facts,
    format_number,
    image_data_uri,
    line_chart,
    message,
    page,
    picture,
    render,
    stat_tile,
    table,
    tiles,
)

NASTY = "<script>alert('1')</script>\"&{0}"
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Reader(HTMLParser):
    """Tags, text and attributes of a document; fails on tags that do not nest."""

    def __init__(self, document: str):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.attributes, self.texts = [], [], [], []
        self.feed(document)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.texts.append(data)


def numbers_in_paths(chart):
    return [float(n) for d in re.findall(r' d="([^"]*)"', chart) for n in re.findall(r"-?[\d.]+", d)]


def test_every_string_from_outside_is_escaped_everywhere():
    # One unescaped slot in any helper lets the tag through.
    image = Image.new("RGB", (4, 4))
    pieces = [
        stat_tile(NASTY, NASTY, NASTY),
        table([NASTY], [[NASTY]]),
        facts({NASTY: NASTY}),
        code_block(NASTY),
        details(NASTY, NASTY),
        message(NASTY),
        picture(image, NASTY, NASTY),
        bars([Bar(NASTY, 0.2, NASTY, (0.1, 0.3), [("mark", 0.5)])], axis={NASTY: 0.5}),
        line_chart(
            {NASTY: ([0, 1], [1.0, 2.0])},
            title=NASTY,
            y_label=NASTY,
            x_label=NASTY,
            references={NASTY: 1.5},
            note=NASTY,
            controls=[(NASTY, NASTY, "dashed", ([0, 1], [1.0, 1.5]))],
        ),
        line_chart({NASTY: ([], [])}, title=NASTY),
        tiles([NASTY]),
        charts([NASTY]),
    ]
    read = Reader(page(NASTY, [(NASTY, piece) for piece in pieces], lead=NASTY, footer=NASTY))
    assert "script" not in read.tags
    assert not any(name.startswith("on") for name, _ in read.attributes)
    assert read.texts.count(NASTY) > 20  # and it is shown as it is, not lost


def test_only_a_script_that_is_ours_can_run():
    own = Markup("if (1 < 2 && true) {}")
    read = Reader(document := page(NASTY, [(NASTY, NASTY)], script=own, contents=True))
    assert read.tags.count("script") == 1 and f"<script>{own}</script>" in document
    assert "script-src 'sha256-j2UHG69HVSwdDUg9NCqgVgn4AP0Lx35j5PutWQ+MWyY='" in document
    assert "script-src" not in page(NASTY, [])
    # Text that is no markup is escaped here too, and its digest does not fit.
    assert page("t", [], script="</script><script>").count("<script>") == 1


def test_contents_lead_to_headings():
    document = page("t", [("one", "1"), (NASTY, "2")], contents=True)
    assert [value for name, value in Reader(document).attributes if name == "href"] == ["#part1", "#part2"]
    assert document.count('<h2 id="part2">&lt;script') == 1 and "<nav>" not in page("t", [("one", "1")])


def test_markup_is_not_escaped_twice_and_values_are_no_templates():
    shown = page("{{ 1 + 1 }}", [("a & b", Markup("<i>{}</i>").format("{1} & {{ 2 }}"))])
    assert "<h1>{{ 1 + 1 }}</h1>" in shown and "<h2>a &amp; b</h2>" in shown and "<i>{1} &amp; {{ 2 }}</i>" in shown


def test_a_template_of_its_own_is_escaped_and_refuses_unknown_names(tmp_path):
    template = tmp_path / "own.html.jinja"
    template.write_text(
        '{% extends "page.html.jinja" %}{% block header %}{% endblock %}{% block footer %}{% endblock %}'
        "{% block content %}{{ message(text) }}{{ text | twice }}{% endblock %}"
    )
    document = render(template, {"twice": lambda text: text * 2}, title="t", text=NASTY)
    assert "script" not in Reader(document).tags and document.count("&lt;script&gt;") == 3
    with pytest.raises(UndefinedError, match="text"):
        render(template, {"twice": str}, title="t")


def classes_without_a_style(document):
    """Classes that a page gives its elements and its style sheets say nothing of: they look like nothing."""
    used = {name for names in re.findall(r' class="([^"]*)"', document) for name in names.split()}
    styled = re.findall(r"\.([a-z][\w-]*)", "".join(re.findall(r"<style>(.*?)</style>", document, re.DOTALL)))
    return used - set(styled)


def test_tones_have_a_style_and_others_are_refused():
    pieces = [
        piece for tone in ("plain", "good", "bad") for piece in (message("m", tone), stat_tile("a", "1", "", tone))
    ]
    assert not classes_without_a_style(page("t", [("pieces", Markup().join(pieces))]))
    for piece in (lambda: message("m", "warn"), lambda: stat_tile("a", "1", "", "warn")):
        with pytest.raises(ValueError, match="tone is 'warn'"):
            piece()


def test_page_asks_nothing_of_the_network():
    image = Image.new("RGB", (4, 4))
    document = page("title", [("one", picture(image, "alt")), ("two", line_chart({"a": ([1], [1])}, title="t"))])
    read = Reader(document)
    assert not {"script", "link", "iframe", "object"} & set(read.tags)
    for name, value in read.attributes:
        if name in ("src", "href", "xlink:href", "srcset", "data", "action", "poster"):
            assert value.startswith("data:image/png;base64,")
    assert not re.search(r"(https?:)?//[a-z]|url\(|@import", document)
    assert ("http-equiv", "Content-Security-Policy") in read.attributes


def test_chart_leaves_gaps_open():
    xs = list(range(8))
    ys = [1.0, 2.0, float("nan"), 3.0, None, 4.0, 5.0, float("inf")]
    chart = line_chart({"a": (xs, ys)}, title="t")
    Reader(chart)
    assert "nan" not in chart.lower()
    assert "inf" not in chart.lower()
    path = re.search(r' d="([^"]*)"', chart)[1]
    assert path.count("M") == 2  # 0-1 and 5-6; a line drawn through the gaps would be one stretch
    assert len(re.findall(r'<circle class="dot s0" [^>]*r="3"/>', chart)) == 1  # 3 stands alone
    assert "<b>5</b>" in chart  # the last value that is one


@pytest.mark.parametrize(
    ("xs", "ys"),
    [
        ([7], [3.0]),
        ([0, 1, 2], [0.0, 0.0, 0.0]),
        ([0, 1, 2], [-2.5, -2.5, -2.5]),
        ([5, 5], [1.0, 2.0]),
        ([0, 1], [1e-9, 2e-9]),
        ([0, 1], [-1e30, 1e30]),
        ([0, 1], [1e308, -1e308]),
        ([0, 100_000], [0.1, 0.1000001]),
    ],
)
def test_chart_stays_inside_its_drawing(xs, ys):
    chart = line_chart({"a": (xs, ys)}, title="t")
    Reader(chart)
    coordinates = numbers_in_paths(chart) + [float(n) for n in re.findall(r'c[xy]="([^"]*)"', chart)]
    assert all(0 <= n <= 440 for n in coordinates)


def test_a_control_has_the_colour_of_its_series_and_a_place_on_the_axis():
    chart = line_chart(
        {"a": ([0, 1], [0.0, 1.0]), "b": ([0, 1], [0.0, 1.0])},
        title="t",
        controls=[("b", "random", "dashed", ([0, 1], [0.0, 4.0]))],
    )
    assert re.findall(r'<path class="line ([^"]*)"', chart) == ["s1 dashed", "s0", "s1"]
    assert "b, random: 4" in chart and chart.count('<i class="key') == 2
    assert all(0 <= n <= 440 for n in numbers_in_paths(chart))


def test_chart_without_values_says_so():
    for xs, ys in (([], []), ([1, 2], [float("nan"), None])):
        assert "no values were logged" in line_chart({"a": (xs, ys)}, title="t")


def test_chart_refuses_series_of_unequal_lengths():
    with pytest.raises(ValueError, match="3 x values and 2 y values"):
        line_chart({"a": ([1, 2, 3], [1.0, 2.0])}, title="t")


def test_a_long_series_is_thinned_without_losing_its_spike():
    ys = [1.0] * 50_000
    ys[31_234] = 9.0
    chart = line_chart({"a": (list(range(50_000)), ys)}, title="t")
    assert len(chart) < 60_000
    heights = numbers_in_paths(chart)[1::2]
    assert min(heights) < 60 < max(heights)  # taking every 125th point would miss the spike


def test_chart_puts_larger_values_higher_and_later_ones_further_right():
    x0, y0, x1, y1 = numbers_in_paths(line_chart({"a": ([10, 20], [0.0, 1.0])}, title="t"))
    assert x1 > x0
    assert y1 < y0


def test_an_axis_that_must_begin_at_zero_does_so_for_zeros():
    chart = line_chart({"a": ([0, 1], [0.0, 0.0])}, title="t", references={"at the start": 0.0}, y_range=(0.0, None))
    assert ">0<" in chart and ">1.0<" in chart and MINUS not in chart


def test_the_legend_names_references_with_their_values():
    chart = line_chart({"a": ([0, 1], [-1.0, -1.2])}, title="t", references={"at the start": -1.0})
    assert '<i class="key dashed"></i>at the start <b>−1</b>' in chart  # noqa: RUF001
    (y,) = re.findall(r'<line class="reference" [^>]*y1="([\d.]+)"', chart)
    assert float(y) == numbers_in_paths(chart)[1]  # at the height of the first value


def test_axis_reaches_the_reference_lines():
    chart = line_chart({"a": ([0, 1], [-1.0, -1.2])}, title="t", references={"best": -4.0})
    assert "−4" in chart  # noqa: RUF001
    assert "best" in chart


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),  # noqa: RUF001
        (float("nan"), "–"),  # noqa: RUF001
        (0.0, "0"),
        (-2.314, "−2.31"),  # noqa: RUF001
        (9600, "9,600"),
        (0.0884, "0.0884"),
        (1e-6, "1e−6"),  # noqa: RUF001
        (71.28, "71.3"),
        (300, "300"),
    ],
)
def test_format_number(value, text):
    assert format_number(value) == text


def test_bars_are_as_long_as_their_values_are_large():
    shown = bars([Bar("a", None, "not measured"), Bar("b", 1.5, "75 %", (1.4, 9.0), [("mark", 1.0)])], high=2.0)
    assert "not measured" in shown and shown.count('class="fill"') == 1
    assert "width:75.0%" in shown and "left:70.0%;right:0.0%" in shown and 'class="mark" style="left:50.0%"' in shown


def test_image_data_uri_keeps_the_bytes_of_a_file():
    assert image_data_uri(b"\x89PNG1234") == "data:image/png;base64,iVBORzEyMzQ="
    assert image_data_uri(Image.new("RGB", (2, 2))).startswith("data:image/png;base64,iVBOR")
    with pytest.raises(ValueError, match="expected a PNG"):
        image_data_uri(b"<svg onload=alert(1)>")
