from matplotlib.figure import Figure

from xtrimogene.eval.report.pages import page, picture


def test_text_is_escaped_and_the_style_is_not():
    record = {"title": "a > b", "created": "2026", "seconds": 1.0, "data": {}, "versions": {}}
    html = page("report.html", record=record, tasks=[])
    assert "<title>a &gt; b</title>" in html
    assert ":root { color-scheme: light dark;" in html


def test_a_picture_is_as_wide_on_the_page_as_it_was_drawn():
    figure = Figure(figsize=(4, 2), layout="constrained")
    figure.subplots().plot([0, 1])
    assert abs(picture(figure)["width"] - 4 * 96) < 20
