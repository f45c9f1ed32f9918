"""Which units are good enough: seen before, nearly seen, in another language, unlikely."""

import math
import sys

import pytest
import torch

from evaluator import Filters, open_model
from evaluator.accuracy import unit_losses
from evaluator.filters import Sieve
from evaluator.set_statistics import repetition
from space import SettingError
from tests.evaluator.pieces import logits_of
from tests.pico import pico_tokens


@pytest.fixture(scope="module")
def trained(stories):
    return open_model(str(stories), dtype="float32")


def test_losses_are_those_of_the_models_own_logits(pico):
    units = pico_tokens(5, 16, 7)
    told = []
    found = unit_losses(pico, units, told.append)
    logprobs = logits_of(pico.model, units)[:, :-1].log_softmax(-1)
    expected = -logprobs.gather(-1, units[:, 1:, None])[..., 0].mean(dim=1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert sum(told) == 5 * 15


def test_duplicates_are_left_out_over_batches(pico):
    units = pico_tokens(4, 16, 7)
    sieve = Sieve(pico, Filters())
    assert torch.equal(sieve.pass_on(units[[0, 1, 0]]), units[:2])
    assert torch.equal(sieve.pass_on(units[[1, 2]]), units[2:3])
    assert sieve.dropped["duplicates"] == 2
    kept = Sieve(pico, Filters(duplicates=False))
    assert len(kept.pass_on(units[[0, 0]])) == 2


def test_the_least_likely_share_is_dropped_and_the_order_kept(trained):
    told = trained.tokenizer("Once upon a time there was a little girl who liked to play in the park with")["input_ids"]
    good = torch.tensor(told[:16])
    noise = torch.randint(3, 500, (2, 16), generator=torch.Generator().manual_seed(0))
    units = torch.stack([noise[0], good, noise[1], good.roll(0), good.flip(0)])
    filters = Filters(perplexity=0.4)
    assert filters.needed(3) == 5
    sieve = Sieve(trained, filters)
    losses = unit_losses(trained, units)
    chosen = sieve.likeliest(units, 3)
    kept = sorted(losses.argsort()[:3].tolist())
    assert torch.equal(chosen, units[kept])
    assert {1, 3} < set(kept)
    assert sieve.dropped["perplexity"] == 2
    assert torch.equal(Sieve(trained, Filters()).likeliest(units, 2), units[:2])


def test_as_many_are_needed_as_leave_the_count():
    assert Filters(perplexity=0.2).needed(128) == 160
    assert Filters(perplexity=0.5).needed(3) == 6
    assert Filters().needed(7) == 7
    for share in (0.1, 0.2, 0.3, 0.7, 0.9):
        for count in range(1, 60):
            needed = Filters(perplexity=share).needed(count)
            assert needed - 1 < count / (1 - share) + 1e-6 <= needed + 1e-5
            assert needed == math.ceil(round(count / (1 - share), 6))


def test_near_duplicates(pico):
    pytest.importorskip("datasketch", reason="needs the package `datasketch`: pip install 'secateur[filters]'")
    units = pico_tokens(6, 64, 3)
    near = units[2].clone()
    near[:4] = near[4:8]  # of sixty 5-grams, some four others
    sieve = Sieve(pico, Filters(near=0.7))
    assert torch.equal(sieve.pass_on(torch.stack([*units[:3], near, *units[3:]])), units)
    assert sieve.dropped == {"duplicates": 0, "near_duplicates": 1, "language": 0, "perplexity": 0}
    assert len(Sieve(pico, Filters(near=0.97)).pass_on(torch.stack([units[2], near]))) == 2


def test_languages(trained, monkeypatch):
    pytest.importorskip("py3langid", reason="needs the package `py3langid`: pip install 'secateur[filters]'")
    english = "Once upon a time there was a little girl who liked to play in the park with her friends every day."
    german = "Es war einmal ein kleines Kind, das jeden Tag mit seinen Freunden gerne im Garten des Hauses spielte."
    rows = [trained.tokenizer(text, add_special_tokens=False)["input_ids"][:40] for text in (english, german)]
    units = torch.stack([torch.tensor((row * 3)[:40]) for row in rows])
    sieve = Sieve(trained, Filters(language="en"))
    assert torch.equal(sieve.pass_on(units), units[:1])
    assert sieve.dropped["language"] == 1


def test_a_language_that_nobody_knows_is_refused_before_anything_is_written(pico):
    pytest.importorskip("py3langid", reason="needs the package `py3langid`: pip install 'secateur[filters]'")
    with pytest.raises(SettingError, match=r"language must be one of .*, af, .*, en, .* but is 'xx'"):
        Sieve(pico, Filters(language="xx"))


@pytest.mark.parametrize(
    ("package", "filters"), [("datasketch", Filters(near=0.8)), ("py3langid.langid", Filters(language="en"))]
)
def test_a_library_that_is_not_installed_is_named(pico, monkeypatch, package, filters):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        SettingError, match=rf"package `{package.split('.')[0]}`, which is not installed; pip install 'secateur"
    ):
        Sieve(pico, filters)


@pytest.mark.parametrize(
    ("name", "value"), [("perplexity", 1.0), ("perplexity", -0.1), ("near", 0.0), ("shortest", -1)]
)
def test_numbers_out_of_range_are_refused(name, value):
    with pytest.raises(SettingError):
        Filters(**{name: value})


def test_repetition_is_the_share_of_4_grams_seen_before():
    loop = torch.tensor([1, 2] * 8)
    fresh = torch.arange(16)
    assert repetition(loop[None]) == pytest.approx(1 - 2 / 13)
    assert repetition(fresh[None]) == 0
    assert repetition(torch.stack([loop, fresh])) == pytest.approx((1 - 2 / 13) / 2)
