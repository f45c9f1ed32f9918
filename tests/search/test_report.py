"""The report says what best.json says, in one page that asks nobody for anything."""

import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from plotly.offline import get_plotlyjs
from rich.console import Console

from predictor import Refinement
from search.comparison import generalisation, headline
from search.figures import DARK, Drawing, pareto_drawing, prediction_drawing
from search.layer_map import layers_drawing, rounds_drawing
from search.learned import curve_drawing, damages_drawing, refinement_drawing
from search.report import PairRow, comparison_table, pareto_front, print_report, render_report, write_report
from space import (
    Architecture,
    Budget,
    Layout,
    RunFolderError,
    SearchSpace,
    build_space,
    cost_of,
    sample,
    uniform_widths,
    whole_ends,
)
from tests.space.timings import made_up

LAYOUT = Layout.from_config(
    {
        "model_type": "llama",
        "num_hidden_layers": 30,
        "hidden_size": 576,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "intermediate_size": 1536,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    }
)
DENSE = Architecture.dense(LAYOUT)


def measured(perplexity: float, kl: float) -> dict[str, Any]:
    return {
        "perplexity": perplexity,
        "perplexity_standard_error": perplexity / 40,
        "nll": float(np.log(perplexity)),
        "nll_standard_error": 0.025,
        "kl": kl,
        "kl_standard_error": kl / 30,
        "agreement": float(np.exp(-kl)),
        "tokens": 2044,
        "protocol": "0123456789abcdef",
    }


def model(architecture: Architecture, perplexity: float, kl: float) -> dict[str, Any]:
    return {
        "architecture": architecture.to_dict(),
        "fingerprint": architecture.fingerprint,
        "cost": cost_of(LAYOUT, architecture).to_dict(),
        "measured": {split: measured(perplexity, kl) for split in ("search", "validate", "report")},
    }


def against(model: dict[str, Any], change: float) -> dict[str, Any]:
    """A baseline with the winner's paired change of perplexity against it, 1 % to either side."""
    nll = float(np.log1p(change))
    paired = {
        "nll": nll, "nll_standard_error": 0.01 / (1 + change), "kl": 0.5 * nll, "kl_standard_error": 0.01,
        "perplexity_change": change, "perplexity_change_standard_error": 0.01,
    }  # fmt: skip
    return {**model, "winner_less_this": dict.fromkeys(("search", "validate", "report"), paired)}


def removals(architecture: Architecture) -> int:
    return sum(not layer.kv_groups for layer in architecture.layers) + sum(
        not layer.mlp_width for layer in architecture.layers
    )


def example_learned(space: SearchSpace) -> dict[str, Any]:
    """A curve that falls by a fifth, damages that are largest in layer 4, and a space without the narrowest MLPs."""
    kept = [
        options[min(2, len(options) - 1) :] if column % 2 else options for column, options in enumerate(space.choices)
    ]
    return {
        "learning_curve": [
            {"pairs": n, "kendall_tau": 0.6 + 0.002 * n, "kendall_tau_best_quarter": 0.4, "rmse_log": 2 / n**0.6}
            for n in (30, 60, 90)
        ],
        "error_with_twice_the_pairs": 2 / 180**0.6,
        "winner_damages": [[0.001, 0.05 if layer == 4 else 0.008] for layer in range(LAYOUT.layers)],
        "refinement": {
            **Refinement(space, replace(space, choices=tuple(kept)), ()).to_dict(),
            "holds_best": True,
        },
    }  # fmt: skip


def example_best(seed: int = 0) -> dict[str, Any]:
    """A run on SmolLM2-135M's layout: the winner at perplexity 37.2 against 49.1, a few sub-blocks removed."""
    budgets = [Budget("parameters", 0.8)]
    space = build_space(LAYOUT, budgets, width_step=64)
    random, *drawn = space.decode(sample(space, 400, np.random.default_rng(seed)))
    winner = next(found for found in drawn if 2 <= removals(found) <= 4)
    return {
        "format": 3,
        "model": "smollm2-135m",
        "weights_hash": "93efa2f097d58c2a",
        "budgets": ["parameters=0.8"],
        "seed": seed,
        "layout": LAYOUT.to_dict(),
        **model(winner, 37.2, 0.31),
        "dense_cost": cost_of(LAYOUT, DENSE).to_dict(),
        "predicted": {"target": "kl", "value": 0.31, "lower": 0.28, "upper": 0.35, "protocol": "0123456789abcdef"},
        "baselines": {
            "dense": against(model(DENSE, 27.3, 0.0), 37.2 / 27.3 - 1),
            "uniform": against(model(uniform_widths(LAYOUT, budgets), 49.1, 0.62), 37.2 / 49.1 - 1),
            "uniform_whole_ends": against(
                model(uniform_widths(LAYOUT, budgets, whole_ends(LAYOUT)), 44.0, 0.5), 37.2 / 44.0 - 1
            ),
            "best_random": against(model(random, 42.4, 0.46), 37.2 / 42.4 - 1),
        },
        "quality": {
            "kendall_tau": 0.78,
            "spearman": 0.93,
            "rmse_log": 0.11,
            "pairs": 330,
            "folds": 10,
            "regressor": "gaussian_process",
            "table": {
                name: {"kendall_tau": tau, "kendall_tau_best_quarter": tau - 0.3, "rmse_log": 0.9 - tau}
                for name, tau in (("xgboost", 0.72), ("gaussian_process", 0.78), ("additive", 0.61))
            },
        },
        "learned": example_learned(space),
        "rounds": [
            {"round": 1, "pairs": 270, "kendall_tau": 0.64, "best_kl": 0.46},
            {"round": 2, "pairs": 294, "kendall_tau": 0.71, "best_kl": 0.36},
            {"round": 3, "pairs": 318, "kendall_tau": 0.75, "best_kl": 0.33},
            {"round": 4, "pairs": 342, "kendall_tau": 0.78, "best_kl": 0.31},
        ],
        "texts": {
            "calibrate": "self-generated, 16,384 tokens",
            "search": "self-generated, 4,096 tokens",
            "validate": "self-generated, 4,096 other tokens",
            "report": "WikiText-2 test, first 2,044 tokens",
        },
        "tokens_through_model": 812345,
        "wall_seconds": 1234.5,
        "environment": {
            "python": "3.11.7",
            "torch": "2.13.0",
            "secateur": "0.1.0",
            "git": "c233122",
            "processor": "Xeon",
            "threads": 2,
            "dtype": "bfloat16",
        },
    }


def example_pairs(frontier: int = 30, others: int = 35) -> list[PairRow]:
    """About 240 architectures with one sub-block changed, and some on the budget and on others."""
    rng = np.random.default_rng(1)
    attention, mlp = np.exp(rng.normal(-5, 1, 30)), np.exp(rng.normal(-3.6, 1, 30))
    mlp[[0, 29]] *= 8

    def pair(architecture: Architecture, kind: str) -> PairRow:
        kept = [(layer.kv_groups / 3, layer.mlp_width / 1536) for layer in architecture.layers]
        linear = sum(2 * attention[i] * (1 - a) ** 1.5 + 2 * mlp[i] * (1 - m) ** 1.7 for i, (a, m) in enumerate(kept))
        kl = float(linear * (1 + 0.5 * linear) * np.exp(rng.normal(0, 0.05)))
        predicted = float(kl * np.exp(rng.normal(0, 0.15)))
        return PairRow(
            architecture.fingerprint,
            architecture,
            kind,
            cost_of(LAYOUT, architecture).to_dict(),
            kl,
            0.04 * kl,
            27 * float(np.exp(kl)),
            predicted,
            predicted * 0.75,
            predicted * 1.35,
        )

    changes = [{"kv_groups": groups} for groups in (0, 1, 2)] + [{"mlp_width": w} for w in (0, 256, 512, 768, 1152)]
    rows = [pair(DENSE.replace(layer, **change), "prior") for layer in range(30) for change in changes]
    drawn = [("random", 0.8, others), ("searched", 0.8, others), ("frontier", 0.65, frontier), ("frontier", 0.9, 10)]
    for kind, share, count in drawn:
        space = build_space(LAYOUT, [Budget("parameters", share)], width_step=64)
        rows += [pair(architecture, kind) for architecture in space.decode(sample(space, count, rng))]
    return rows


class Page(HTMLParser):
    """What a page loads, its headings, its figures and its header cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]

    def of(self, *names: str) -> list[dict[str, str | None]]:
        return [attrs for tag, attrs in self.tags if tag in names]


@pytest.fixture(scope="module")
def best() -> dict[str, Any]:
    return example_best()


@pytest.fixture(scope="module")
def pairs() -> list[PairRow]:
    return example_pairs(frontier=4, others=4)


@pytest.fixture(scope="module")
def page(best: dict[str, Any], pairs: list[PairRow]) -> str:
    return render_report(best, pairs)


def printed(best: dict[str, Any], width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_report(best, console)
    return console.file.getvalue().replace("\N{NO-BREAK SPACE}", " ")  # type: ignore[attr-defined]


def without_plotly(page: str) -> str:
    assert page.count(get_plotlyjs()) == 1
    return page.replace(get_plotlyjs(), "")


def test_table_has_a_row_a_model_and_the_winner_is_bold(best: dict[str, Any]) -> None:
    table = comparison_table(best)
    labels = list(table.columns[0].cells)
    assert labels == ["dense", "uniform", "uniform, whole ends", "best random", "winner"]
    assert [line.style for line in table.rows] == [None] * 4 + ["bold"]


def test_table_gives_the_numbers_of_the_report_text(best: dict[str, Any]) -> None:
    columns = [list(column.cells) for column in comparison_table(best).columns]
    winner = [str(cells[-1]).replace("\N{NO-BREAK SPACE}", " ") for cells in columns]
    share = best["cost"]["parameters"] / best["dense_cost"]["parameters"]
    assert winner[1] == f"{100 * share:.1f} %"
    assert winner[5:] == ["37.2 ± 0.9", "0.310 ± 0.010", "73.3 %", "–"]
    assert [str(cell).replace("\N{NO-BREAK SPACE}", " ") for cell in columns[-1]] == [
        "+36.3 ± 1.0 %",
        "-24.2 ± 1.0 %",  # 37.2 / 49.1 = 0.758
        "-15.5 ± 1.0 %",
        "-12.3 ± 1.0 %",
        "–",
    ]


def test_masked_models_show_how_much_is_not_zero(best: dict[str, Any]) -> None:
    sparse = Architecture.from_dict(best["architecture"]).replace(3, mlp_sparsity=0.5)
    masked = {**best, **model(sparse, 37.2, 0.31)}
    assert len(comparison_table(masked).columns) == len(comparison_table(best).columns) + 1
    assert "sparsity: share of zeros" in render_report(masked, [])
    assert "50 % zeros" in render_report(masked, [])


@pytest.mark.parametrize("width", [80, 120])
def test_printed_report_fits_and_names_text_seed_and_trust(best: dict[str, Any], width: int) -> None:
    text = printed(best, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text  # nothing cut off
    words = " ".join(text.split())
    for part in ("WikiText-2 test", "812,345 tokens", "seed 0", "Kendall tau is 0.78", "20 min 34 s"):
        assert part in words


def timed(best: dict[str, Any]) -> dict[str, Any]:
    """The same run with its models' latency."""
    found = json.loads(json.dumps(best))
    table = made_up(LAYOUT, fixed=81_000_000)
    for told in (found, *found["baselines"].values()):
        told["cost"]["latency"] = table.of(Architecture.from_dict(told["architecture"]))
    found["dense_cost"]["latency"] = table.dense
    record = {"table_ms": 240.1234, "measured_ms": 251.5, "standard_error_ms": 1.23, "table_error": -0.0452}
    check = {"models": [{}] * 9, "mean_error": 0.031, "largest_error": 0.062, "kendall_tau": 0.97, "spearman": 0.99}
    described = str(table.conditions)
    return {
        **found,
        "budgets": ["latency=0.8"],
        "latency": {"described": described, "check": check, "winner": record, "dense": record},
    }


@pytest.mark.parametrize("width", [80, 120])
def test_latency_is_told_by_table_and_clock(best: dict[str, Any], width: int) -> None:
    text = printed(timed(best), width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    words = " ".join(text.split())
    for part in (
        "Latency is of a prefill of 1 x 512 tokens in float32 on 2 threads of A Processor: the winner 240 ms by the "
        "table, 252 ms ± 1.23 ms measured (-4.5 %), the dense model",
        "Of 9 whole models the table of timings was 3.1 % off in the mean, 6.2 % at most (Kendall tau 0.97).",
    ):
        assert part in words


def test_a_page_about_latency_has_it_on_its_axis(best: dict[str, Any], pairs: list[PairRow]) -> None:
    found = timed(best)
    table = made_up(LAYOUT, fixed=81_000_000)
    rows = [replace(pair, cost={**pair.cost, "latency": table.of(pair.architecture)}) for pair in pairs]
    text = render_report(found, rows)
    share = found["cost"]["latency"] / found["dense_cost"]["latency"]
    assert headline(found).startswith(f"{100 * share:.3g} % of the dense model's latency, perplexity")
    assert "latency, share of dense" in text
    assert ">Latency, ms</th>" in text
    assert ">FLOPs</th>" in text
    shown = [str(column.header) for column in comparison_table(found).columns]
    assert "Lat.,\nms" in shown
    assert "FLOPs" not in shown  # too wide for a terminal


def test_missing_split_is_a_dash(best: dict[str, Any]) -> None:
    partial = json.loads(json.dumps(best))
    del partial["baselines"]["best_random"]["measured"]["report"]
    columns = [list(column.cells) for column in comparison_table(partial).columns]
    assert [cells[3] for cells in columns[5:]] == ["–"] * 4
    assert '<th scope="row">best random</th>' in render_report(partial, [])


def test_headline_says_what_was_gained(best: dict[str, Any]) -> None:
    share = 100 * best["cost"]["parameters"] / best["dense_cost"]["parameters"]
    assert headline(best) == (
        f"{share:.3g} % of the decoder's parameters, perplexity 37.2 ± 0.9 against 49.1 for uniform pruning "
        "(-24.2 ± 1.0 %)."
    )


def test_headline_does_not_sell_noise(best: dict[str, Any]) -> None:
    near = json.loads(json.dumps(best))
    near["baselines"]["uniform"]["winner_less_this"]["report"]["nll"] = -0.015
    assert "take them as equal" in headline(near)


def test_what_was_won_on_the_search_text_alone_is_told(best: dict[str, Any]) -> None:
    paired = best["baselines"]["uniform_whole_ends"]["winner_less_this"]
    for split, kl, error in (("search", -0.1, 0.02), ("validate", -0.03, 0.01), ("report", 0.005, 0.01)):
        paired[split] = {**paired[split], "kl": kl, "kl_standard_error": error}
    told = generalisation(best)
    assert told is not None
    assert "Against uniform, whole ends" in told  # of a KL of 0.5, and not dense, which was not searched either
    for words in ("-20.0 ± 4.0 % on the text it was", "-6.0 ± 2.0 % on that of the f", "+1.0 ± 2.0 % on that of the r"):
        assert words in told
    del best["measured"]["validate"]
    assert generalisation(best) is None


def test_page_asks_no_other_host(page: str) -> None:
    parsed = Page(page)
    assert parsed.links == []
    text = without_plotly(page)
    assert "http://" not in text
    assert "https://" not in text
    assert "url(" not in text
    assert "@import" not in text
    policy = next(meta for meta in parsed.of("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert (policy["content"] or "").startswith("default-src 'none'")


def test_text_from_the_run_is_escaped(best: dict[str, Any], pairs: list[PairRow]) -> None:
    evil = "<script>alert(1)</script>"
    hostile = json.loads(json.dumps(best))
    hostile.update(model=evil, weights_hash=evil, fingerprint=evil, texts=dict.fromkeys(best["texts"], evil))
    hostile["environment"][evil] = evil
    hostile["texts"][evil] = evil
    hostile["quality"][evil] = evil
    hostile["baselines"][evil] = hostile["baselines"]["best_random"]
    text = render_report(hostile, pairs)
    assert evil not in text
    assert len(Page(text).of("script")) == len(Page(render_report(best, pairs)).of("script"))
    assert "&lt;script&gt;alert(1)&lt;/script&gt; pruned to" in text
    assert evil in " ".join(printed(hostile, 200).split())  # on the terminal as it is
    printed({**best, "model": "[/bold] [red]"})


def test_page_can_be_read_without_seeing_it(page: str) -> None:
    parsed = Page(page)
    assert parsed.of("html") == [{"lang": "en"}]
    assert len(parsed.of("title")) == len(parsed.of("h1")) == 1
    headers = parsed.of("th")
    assert headers
    assert all(header.get("scope") in ("col", "row") for header in headers)
    figures = [attrs for attrs in parsed.of("div") if attrs.get("role") == "img"]
    assert len(figures) == 7
    assert all((figure.get("aria-label") or "").endswith(".") for figure in figures)
    assert re.findall(r"<h(\d)", without_plotly(page)) == ["1"] + ["2"] * 10


def test_every_figure_is_json_and_every_colour_has_a_dark_one(page: str) -> None:
    found = re.findall(r'<script type="application/json" id="\w+-data">(.*?)</script>', without_plotly(page), re.S)
    assert len(found) == 7
    for text in found:
        assert json.loads(text)["data"]
        assert set(re.findall(r'"(#[0-9a-fA-F]{6})"', text)) <= set(DARK)


def test_removed_sub_blocks_are_marked(best: dict[str, Any]) -> None:
    bare = Architecture.dense(LAYOUT).replace(4, kv_groups=0).replace(9, kv_groups=0).replace(22, mlp_width=0)
    run = {**best, **model(bare, 37.2, 0.31)}
    drawing = layers_drawing(run)
    marked = [list(trace.x) for trace in drawing.figure.data if trace.name == "removed"]
    assert marked == [[4, 9], [22]]
    assert drawing.summary.endswith("removed are attention of layers 4, 9 and MLP of layer 22.")
    assert render_report(run, []).count('<strong class="removed">removed</strong>') == 3
    assert layers_drawing({**best, **model(DENSE, 27.3, 0.1)}).summary.endswith("no sub-block is removed.")


def test_pareto_front() -> None:
    costs = [3.0, 1.0, 2.0, 2.0, 4.0, 5.0, 1.0]
    losses = [2.0, 9.0, 5.0, 4.0, 3.0, 1.0, 9.0]
    assert pareto_front(costs, losses) == [1, 3, 0, 5]  # 2 and 4 are beaten, 6 equals 1
    assert pareto_front([], []) == []
    with pytest.raises(ValueError, match="but there are 1 and 0"):
        pareto_front([1.0], [])


def test_pareto_plot_follows_the_first_budget(best: dict[str, Any], pairs: list[PairRow]) -> None:
    drawing = pareto_drawing({**best, "budgets": ["kv_cache_bytes_per_token=0.7", "parameters=0.8"]}, pairs)
    assert drawing.figure.layout.xaxis.title.text == "KV cache bytes per token, share of dense"
    star = next(trace for trace in drawing.figure.data if trace.name == "winner")
    assert star.x[0] == best["cost"]["kv_cache_bytes_per_token"] / best["dense_cost"]["kv_cache_bytes_per_token"]
    assert star.y[0] == best["measured"]["search"]["kl"]
    labels = {note.text for note in drawing.figure.layout.annotations}
    assert labels == {"budget 70 %", "uniform", "uniform, whole ends", "best random", "<b>winner</b>"}


def test_labels_of_equal_baselines_do_not_overlap(best: dict[str, Any]) -> None:
    same = json.loads(json.dumps(best))
    for baseline in same["baselines"].values():
        baseline["measured"]["search"]["kl"] = 0.31
    notes = [note for note in pareto_drawing(same, []).figure.layout.annotations if note.ax]
    heights = sorted(note.ay for note in notes)
    assert len(heights) == 5
    assert min(np.diff(heights)) >= 15


def test_prediction_plot_counts_intervals(pairs: list[PairRow]) -> None:
    drawing = prediction_drawing(pairs)
    assert drawing is not None
    inside = sum((pair.lower or 0) <= pair.kl <= (pair.upper or 0) for pair in pairs)
    assert f"{inside} of {len(pairs)} prediction intervals" in drawing.summary
    assert prediction_drawing([]) is None


def test_a_run_without_rounds_predictions_or_rank_has_a_page(best: dict[str, Any]) -> None:
    bare = {**best, "rounds": [], "quality": {}, "predicted": None}
    assert rounds_drawing(bare) is None
    unlearned = render_report({**bare, "learned": {}}, [])
    assert len([attrs for attrs in Page(unlearned).of("div") if attrs.get("role") == "img"]) == 2
    assert len([attrs for attrs in Page(render_report(bare, [])).of("div") if attrs.get("role") == "img"]) == 5
    first = rounds_drawing({**best, "rounds": [{"round": 1, "pairs": 9, "kendall_tau": None, "best_kl": 0.4}]})
    assert isinstance(first, Drawing)
    assert "Over 1 round " in first.summary
    assert "from unknown to unknown" in first.summary


def test_progress_shows_the_hypervolume_of_a_set(best: dict[str, Any]) -> None:
    rounds = [{**entry, "hypervolume": 0.1 * entry["round"]} for entry in best["rounds"]]
    drawing = rounds_drawing({**best, "rounds": rounds})
    assert isinstance(drawing, Drawing)
    assert list(drawing.figure.data[2].y) == [entry["hypervolume"] for entry in rounds]
    assert "and the hypervolume from 0.1 to 0.4." in drawing.summary
    assert len(rounds_drawing(best).figure.data) == 2


def test_another_format_is_refused(best: dict[str, Any]) -> None:
    with pytest.raises(RunFolderError, match=r"must be of format 3, but is of 2"):
        render_report({**best, "format": 2}, [])


def test_report_is_whole_before_it_has_its_name(
    best: dict[str, Any], pairs: list[PairRow], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_report(tmp_path, best, pairs)
    assert path == tmp_path / "report.html"
    assert path.read_text(encoding="utf-8").endswith("</html>\n")
    before = path.read_bytes()
    seen: list[str] = []

    def refuse(self: Path, target: Path) -> Path:
        seen.append(self.read_text(encoding="utf-8")[-8:])
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OSError, match="disk full"):
        write_report(tmp_path, {**best, "model": "other"}, pairs)
    assert seen == ["</html>\n"]
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


def test_the_curve_says_whether_more_pairs_pay(best: dict[str, Any]) -> None:
    learned = best["learned"]
    drawing = curve_drawing(learned)
    assert "With 90 pairs the predictor errs by 13.4 % (held out); with twice as many 8.9 %" in drawing.summary
    assert drawing.summary.endswith("so more pairs pay.")
    assert curve_drawing({**learned, "error_with_twice_the_pairs": 0.13}).summary.endswith("more pairs hardly pay.")


def test_damages_name_the_layer_that_costs_most(best: dict[str, Any]) -> None:
    drawing = damages_drawing(best["learned"], "KL")
    assert "KL of 0.312: layer 4 most, 0.051." in drawing.summary
    assert [list(trace.y)[4] for trace in drawing.figure.data] == [0.001, 0.05]


def test_the_refined_space_is_drawn_with_what_was_cut(best: dict[str, Any], page: str) -> None:
    drawing = refinement_drawing(best)
    assert drawing is not None
    assert "660 of 720 choices" in drawing.summary or "choices, 10^" in drawing.summary
    assert drawing.summary.endswith("The best measured of the full space lies inside.")
    bars = next(trace for trace in drawing.figure.data if trace.name == "MLP: searched")
    assert min(bars.base) > 0
    assert refinement_drawing({**best, "learned": {**best["learned"], "refinement": None}}) is None
    assert "Regressors that were tried on 330 pairs" in page
    assert page.count("<tr class=winner>") == 2  # of the comparison and of the regressors
