"""A study's figure, table and sentence say what its numbers say, and take names for text."""

import json

import numpy as np
import pytest

from search.calibration_figure import in_words, render_study, study_drawing, study_table
from search.calibration_study import summary, winners

NAMES = {"self": 20.0, "c4 <b>[x]": 21.0, "wiki": 40.0}


def study(sources=NAMES, settings=("wanda:0.6", "sparsegpt:2:4"), draws=3, deviation=0.01):
    """Three sources, of which the first is better by 5 % and by 100 %, ten times as bad in the second setting."""
    rows = [
        {
            "source": source,
            "setting": setting,
            "draw": draw,
            "perplexity": {
                "a.txt": value * 10**place * np.exp(deviation * (draw - (draws - 1) / 2)),
                "b.txt": 4 * value * 10**place,
            },
        }
        for place, setting in enumerate(settings)
        for source, value in sources.items()
        for draw in range(draws)
    ]
    table = summary(rows)
    return {
        "model": "models/pico",
        "sources": {source: {} for source in sources},
        "settings": list(settings),
        "texts": {"a.txt": [2, 32], "b.txt": [2, 32]},
        "sequences": 4,
        "sequence_length": 32,
        "draws": list(range(draws)),
        "summary": table,
        "winners": winners(table),
        "rows": rows,
    }


def points(drawing, kind):
    """Return (perplexity, place) of the points of a kind, panel by panel."""
    return [list(zip(trace.x, trace.y, strict=True)) for trace in drawing.figure.data if trace.name.startswith(kind)]


def drawn(told):
    """Return the figure that the page holds."""
    return json.loads(render_study(told).split('id="study-data">')[1].split("</script>")[0])


def test_every_source_has_its_place_in_every_panel():
    drawing = study_drawing(study())
    assert points(drawing, "lowest") == [[(40.0, 0)], [(400.0, 0)]]
    assert points(drawing, "mean") == [[(42.0, 1), (80.0, 2)], [(420.0, 1), (800.0, 2)]]
    [first, _] = points(drawing, "a single")
    assert [round(place) for _, place in first] == [0] * 3 + [1] * 3 + [2] * 3
    assert [value for value, _ in first[:3]] == pytest.approx(40 * np.exp([-0.005, 0, 0.005]))
    symbols = {trace.name: trace.marker.symbol for trace in drawing.figure.data}
    assert len(set(zip(symbols, symbols.values(), strict=True))) == 3
    assert symbols["lowest mean of its setting"] == "star"
    assert drawing.figure.layout.yaxis.ticktext == ("self", "c4 &lt;b&gt;[x]", "wiki")


def test_error_bars_are_the_deviation_of_a_draw():
    traces = study_drawing(study(deviation=0.2)).figure.data
    trace = next(trace for trace in traces if trace.name.startswith("lowest"))
    assert trace.error_x.array[0] == pytest.approx(40 * (np.exp(0.1) - 1))
    assert trace.error_x.arrayminus[0] == pytest.approx(40 * (1 - np.exp(-0.1)))


def test_an_axis_holds_all_of_its_panel():
    figure = study_drawing(study()).figure
    for panel, axis in ((0, figure.layout.xaxis), (1, figure.layout.xaxis2)):
        low, high = 10 ** np.array(axis.range)
        assert axis.type == "log"
        assert low < 40 * 10**panel
        assert 80 * 10**panel < high < 100 * 10**panel


@pytest.mark.parametrize("more", [{"draws": 1}, {"settings": ("wanda:0.6",)}, {"sources": {"self": 20.0}}])
def test_the_least_there_is_to_draw(more):
    told = study(**more)
    assert study_drawing(told).height > 100
    assert "NaN" not in json.dumps(drawn(told))
    assert study_table(told).row_count == len(told["sources"])


def test_a_sentence_says_who_is_best_and_by_how_much():
    told = in_words(study())
    assert told.startswith("Lowest perplexity of pico on a.txt and b.txt, 3 draws of 4 x 32 tokens each: at wanda:0.6 ")
    assert "at wanda:0.6 self (40.00, 4.8 % below c4 <b>[x]); at sparsegpt:2:4 self (400.00, 4.8 % below" in told
    assert "1 draw of" in in_words(study(draws=1))
    # 5 % are not told from nothing where a draw deviates by 10 %, half of it on one of two texts.
    assert "self (40.00, which 3 draws do not tell from c4 <b>[x], 42.00)" in in_words(study(deviation=0.2))


def test_the_page_says_it_in_words_and_numbers():
    told = study()
    page = render_study(told)
    assert page.count("★ 40.00 ± 0.5") == 1
    assert page.count("★ 400.00") == 1
    assert "4.8 % below c4 &lt;b&gt;[x]" in page
    assert "c4 <b>" not in page
    assert len(drawn(told)["data"]) == 6
