"""The numbers are those of transformers and of the definitions."""

import math
from dataclasses import replace

import pytest
import torch

import evaluator.accuracy as accuracy_module
import evaluator.boundaries as boundaries_module
from evaluator import open_model
from evaluator.accuracy import TAIL_DRAWS, TOP_K, TokenScores, _choose, make_reference, score_tokens
from evaluator.measurement import Measurement, Protocol, difference
from evaluator.sources import tokenise
from space import Architecture, ArchitectureError, Criterion, MeasurementError, RunFolderError, SettingError
from tests.evaluator.pieces import logits_of, make_evaluator, make_surgeon, mixed, random_texts
from tests.pico import pico_tokens

PROTOCOL = Protocol("weights", "text", "file.txt", "search", 100, 26, "wanda", "calibration", "float32")


def exact_divergence(p_logits, q_logits):
    """KL of the full distributions, in float64, for every predicted token."""
    p, q = (logits[:, :-1].double().log_softmax(dim=-1).flatten(0, 1) for logits in (p_logits, q_logits))
    return (p.exp() * (p - q)).sum(dim=-1)


@pytest.fixture(scope="module")
def trained(stories):
    return open_model(str(stories), dtype="float32")


def test_nll_is_the_loss_of_transformers(pico):
    # Enough tokens for several batches and chunks.
    tokens = pico_tokens(40, 65)
    scores = score_tokens(pico, make_reference(pico, tokens))
    with torch.inference_mode():
        loss = pico.model(tokens, labels=tokens, use_cache=False).loss
    assert len(scores.nll) == 40 * 64
    assert scores.nll.mean().item() == pytest.approx(loss.item(), rel=1e-5)


def test_nll_of_single_tokens_is_in_order(pico):
    tokens = pico_tokens(3, 20)
    scores = score_tokens(pico, make_reference(pico, tokens))
    log_q = logits_of(pico.model, tokens)[:, :-1].log_softmax(dim=-1)
    expected = -log_q.gather(2, tokens[:, 1:, None]).flatten()
    torch.testing.assert_close(scores.nll, expected, atol=1e-5, rtol=1e-5)


def test_dense_against_itself(pico):
    scores = score_tokens(pico, make_reference(pico, pico_tokens()))
    assert scores.kl.abs().max().item() < 1e-5
    assert scores.agreement.mean().item() == 1.0


def test_divergence_is_exact_for_a_small_vocabulary(pico):
    tokens = pico_tokens()
    assert pico.layout.vocabulary <= TOP_K
    reference, before = make_reference(pico, tokens), logits_of(pico.model, tokens)
    make_surgeon(pico).install(mixed(pico))
    after = logits_of(pico.model, tokens)
    scores = score_tokens(pico, reference)
    torch.testing.assert_close(scores.kl.double(), exact_divergence(before, after), atol=1e-4, rtol=1e-4)
    same = (before.argmax(-1) == after.argmax(-1))[:, :-1].flatten().float()
    assert torch.equal(scores.agreement, same)
    assert 0 < same.mean() < 1


@pytest.mark.parametrize("top", [256, 8])
def test_divergence_from_the_top_and_draws_from_the_rest_is_unbiased(trained, data, monkeypatch, top):
    monkeypatch.setattr(accuracy_module, "TOP_K", top)  # of 512 tokens: with 8 the draws carry a large part
    tokens = tokenise(trained, str(data / "text" / "tinystories.txt"))[: 8 * 128].view(8, 128)
    reference, before = make_reference(trained, tokens), logits_of(trained.model, tokens)
    assert reference.ids.shape == (8 * 127, top + TAIL_DRAWS)
    assert reference.rest.mean() > (0.05 if top == 8 else 0)
    surgeon = make_surgeon(trained)
    dense = Architecture.dense(trained.layout)
    for architecture in (dense.replace(2, mlp_width=64), dense.replace(1, kv_groups=1, mlp_sparsity=0.5)):
        surgeon.install(architecture)
        exact = exact_divergence(before, logits_of(trained.model, tokens)).mean().item()
        found = score_tokens(trained, reference).kl.mean().item()
        assert exact > 0.01  # real damage
        assert found == pytest.approx(exact, rel=0.002 if top == 256 else 0.02)
    surgeon.restore()


@pytest.mark.parametrize(("draws", "error"), [(64, 0.08), (2048, 0.03)])
def test_estimating_the_normaliser_from_the_tokens_kept(trained, data, monkeypatch, draws, error):
    monkeypatch.setattr(accuracy_module, "TOP_K", 32)  # of 512 tokens
    monkeypatch.setattr(accuracy_module, "TAIL_DRAWS", draws)
    tokens = tokenise(trained, str(data / "text" / "tinystories.txt"))[: 8 * 128].view(8, 128)
    reference = make_reference(trained, tokens)
    exact = score_tokens(trained, reference)
    own = score_tokens(trained, reference, estimated=True)
    # Of the dense model itself every draw says the same, so nothing is left to chance.
    torch.testing.assert_close(own.nll, exact.nll, atol=1e-4, rtol=1e-4)
    assert own.kl.abs().max() < 1e-4
    surgeon = make_surgeon(trained)
    dense = Architecture.dense(trained.layout)
    for architecture in (dense.replace(2, mlp_width=64), dense.replace(1, kv_groups=1, mlp_sparsity=0.5)):
        surgeon.install(architecture)
        exact, own = (score_tokens(trained, reference, estimated=each) for each in (False, True))
        assert exact.kl.mean() > 0.01
        assert own.kl.mean() == pytest.approx(exact.kl.mean().item(), rel=error)
        assert own.nll.mean() == pytest.approx(exact.nll.mean().item(), rel=error / 2)
        assert own.agreement.mean() >= exact.agreement.mean()  # a rival outside the tokens kept is not seen
        assert own.agreement.mean() == pytest.approx(exact.agreement.mean().item(), abs=0.02)
        assert not torch.equal(own.kl, exact.kl)
    surgeon.restore()


def test_only_the_search_text_is_scored_by_an_estimate(pico, tmp_path, monkeypatch):
    asked = [mixed(pico)]

    def kls(place):
        judge = make_evaluator(pico, tmp_path / place)
        protocols = {split: judge.protocol(split).divergence for split in ("search", "validate", "report")}
        found = [judge.measure(asked, split, "user")[0].kl for split in protocols]
        judge.surgeon.restore()
        return protocols, found

    protocols, exact = kls("exact")
    assert set(protocols.values()) == {"top 256 + 64 draws from the rest"}  # a small vocabulary is quick as it is
    monkeypatch.setattr(accuracy_module, "_FEWEST_WORDS", 100)
    monkeypatch.setattr(accuracy_module, "TOP_K", 32)
    protocols, estimated = kls("estimated")
    assert protocols["search"] == "top 256 + 64 draws from the rest, normalised by them"
    assert protocols["validate"] == protocols["report"] == "top 256 + 64 draws from the rest"
    assert estimated[0] == pytest.approx(exact[0], rel=0.2)
    assert estimated[1:] == pytest.approx(exact[1:], rel=0.05)


def test_draws_are_from_the_rest_in_proportion_and_repeat():
    logprobs = torch.randn(400, 300, generator=torch.Generator().manual_seed(0)).log_softmax(-1)[:1].expand(400, 300)
    (ids, rest), (again, _) = (_choose(logprobs, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(ids, again)
    top, draws = ids[0, :TOP_K], ids[:, TOP_K:]
    others = torch.tensor(sorted(set(range(300)) - set(top.tolist())))
    assert logprobs[0, top].min() >= logprobs[0, others].max()
    torch.testing.assert_close(rest[0], logprobs[0, others].exp().sum())
    shares = torch.bincount(draws.flatten(), minlength=300)[others] / draws.numel()
    torch.testing.assert_close(shares, logprobs[0, others].exp() / rest[0], atol=0.005, rtol=0)
    assert torch.bincount(draws.flatten(), minlength=300)[top].sum() == 0


def test_a_divergence_below_zero_is_zero():
    scores = TokenScores(torch.ones(4), torch.tensor([1e-6, -3e-6, 0.0, 0.0]), torch.ones(4))
    assert Measurement.from_scores(scores, 1, PROTOCOL, 0.0).kl == 0.0


def test_standard_error_by_block_means_by_hand():
    # Two sequences of 128 predicted tokens are four blocks of 64.
    values = torch.cat([torch.full((64,), value) for value in (1.0, 3.0, 5.0, 7.0)])
    scores = TokenScores(values, values / 10, torch.ones(256))
    found = Measurement.from_scores(scores, 2, PROTOCOL, 0.5)
    deviation = math.sqrt((9 + 1 + 1 + 9) / 3)
    assert found.nll == pytest.approx(4.0)
    assert found.nll_standard_error == pytest.approx(deviation / 2)
    assert found.kl_standard_error == pytest.approx(deviation / 20)
    assert found.perplexity == pytest.approx(math.exp(4))
    assert found.perplexity_standard_error == pytest.approx(math.exp(4) * deviation / 2)
    assert (found.agreement, found.tokens, found.protocol) == (1.0, 256, PROTOCOL.fingerprint)


def test_a_paired_difference_by_hand():
    common = torch.cat([torch.full((64,), value) for value in (1.0, 30.0, 5.0, 70.0)])
    better = torch.cat([torch.full((64,), value) for value in (0.1, 0.3, 0.1, 0.3)])
    mine = Measurement.from_scores(TokenScores(common - better, common, torch.ones(256)), 2, PROTOCOL, 0.5)
    other = Measurement.from_scores(TokenScores(common, common + 2 * better, torch.ones(256)), 2, PROTOCOL, 0.5)
    found = difference(mine, other)
    deviation = math.sqrt(4 * 0.01 / 3)
    assert found.nll == pytest.approx(-0.2, abs=1e-5)
    assert found.nll_standard_error == pytest.approx(deviation / 2, rel=1e-4)  # what is common to both cancels
    assert found.kl == pytest.approx(-0.4, abs=1e-5)
    assert found.kl_standard_error == pytest.approx(deviation, rel=1e-4)
    assert found.perplexity_change == pytest.approx(math.exp(-0.2) - 1, abs=1e-5)
    told = found.to_dict()
    assert told["perplexity_change_standard_error"] == pytest.approx(math.exp(-0.2) * deviation / 2, rel=1e-4)
    assert difference(other, mine).nll == -found.nll


def test_measurements_of_two_protocols_are_not_compared():
    scores = TokenScores(torch.ones(4), torch.ones(4), torch.ones(4))
    one, other = (
        Measurement.from_scores(scores, 1, protocol, 0.0) for protocol in (PROTOCOL, replace(PROTOCOL, split="other"))
    )
    with pytest.raises(MeasurementError, match="must be of one protocol to be compared"):
        difference(one, other)


def test_a_measurement_that_is_not_finite_is_refused():
    scores = TokenScores(torch.tensor([1.0, float("nan")]), torch.zeros(2), torch.ones(2))
    with pytest.raises(MeasurementError, match="must be finite, but gave NLL nan"):
        Measurement.from_scores(scores, 1, PROTOCOL, 0.0)


def test_every_field_of_a_protocol_is_in_its_fingerprint():
    from dataclasses import fields, replace

    names = [field.name for field in fields(Protocol)]
    changed = [replace(PROTOCOL, **{name: "other"}).fingerprint for name in names]
    assert len({PROTOCOL.fingerprint, *changed}) == len(names) + 1


def test_starting_at_the_first_changed_layer_gives_the_same_numbers(pico_folder, tmp_path, monkeypatch):
    dense = Architecture.dense(open_model(str(pico_folder), dtype="float32").layout)
    asked = [
        dense,
        dense.replace(0, mlp_width=20),
        dense.replace(3, mlp_width=20),
        dense.replace(5, kv_groups=0),
        dense.replace(2, kv_groups=0, mlp_width=0).replace(4, mlp_sparsity=0.5),
    ]

    def measured(folder):
        judge = make_evaluator(open_model(str(pico_folder), dtype="float32"), folder)
        found = judge.measure(asked, "search", "user")
        return judge, [(each.nll, each.kl, each.agreement) for each in found]

    with_prefix, numbers = measured(tmp_path / "a")
    assert list(with_prefix._prefixes["search"]) == [1, 2, 3, 4, 5]
    # Nothing of the replay is left behind.
    assert [layer for layer in with_prefix.dense.layers if "forward" in vars(layer)] == []
    monkeypatch.setattr(boundaries_module, "allowance", lambda *_: 2 * 4 * 32 * 32 * 4)
    with_two, same = measured(tmp_path / "c")
    assert list(with_two._prefixes["search"]) == [2, 4]
    assert same == numbers
    monkeypatch.setattr(boundaries_module, "allowance", lambda *_: 0)
    without, expected = measured(tmp_path / "b")
    assert not without._prefixes["search"]
    assert numbers == expected
    assert len(set(numbers)) == len(asked)


def test_layers_before_the_first_changed_one_are_not_computed(pico, tmp_path):
    judge = make_evaluator(pico, tmp_path)
    judge.measure([Architecture.dense(pico.layout)], "search", "user")
    calls = []
    for index, layer in enumerate(pico.layers):
        layer.mlp.register_forward_hook(lambda *_, index=index: calls.append(index))
    judge.measure([Architecture.dense(pico.layout).replace(4, kv_groups=1)], "search", "user")
    assert calls == [4, 5]


def test_what_was_measured_is_not_measured_again(pico, tmp_path):
    judge = make_evaluator(pico, tmp_path)
    architecture = mixed(pico)
    [first] = judge.measure([architecture], "search", "random")
    judge.surgeon.restore()
    told = []
    [second] = judge.measure([architecture], "search", "user", told.append)
    assert second == first  # wall seconds included: it is the same measurement
    assert told == [1]
    assert judge.surgeon.installed == Architecture.dense(pico.layout)
    [other] = judge.measure([architecture], "validate", "user")
    assert other.protocol != first.protocol
    assert other.kl != first.kl


def test_nothing_is_measured_when_one_architecture_does_not_fit(pico, tmp_path):
    judge = make_evaluator(pico, tmp_path)
    dense = Architecture.dense(pico.layout)
    with pytest.raises(ArchitectureError):
        judge.measure([dense, dense.replace(1, kv_groups=5)], "search", "user")
    assert judge.store.tokens_measured() == 0


def test_statistics_are_taken_from_the_folder_that_fits(pico_folder, tmp_path):
    def statistics(told, **more):
        dense = open_model(str(pico_folder), dtype="float32")
        judge = make_evaluator(dense, tmp_path, folder=tmp_path / "prepared", progress=told.append, **more)
        return judge.surgeon.statistics

    first_told, second_told = [], []
    first, second = statistics(first_told), statistics(second_told)
    assert sum(first_told) == 6
    assert second_told == []
    for one, other in zip(first, second, strict=True):
        assert one.influence == other.influence
        assert one.inputs.keys() == other.inputs.keys()
        for path, inputs in one.inputs.items():
            assert torch.equal(inputs.norms, other.inputs[path].norms)
        assert torch.equal(one.inputs["mlp.down_proj"].moments, other.inputs["mlp.down_proj"].moments)
    other_told: list[int] = []
    statistics(other_told, texts=random_texts(3))
    assert sum(other_told) == 6  # another calibration text: computed anew
    statistics(other_told, texts=random_texts(3), criterion=Criterion(widths="taylor"))
    assert sum(other_told) == 12  # and another criterion that needs more
    assert len(list((tmp_path / "prepared" / "statistics").iterdir())) == 6


def test_damaged_statistics_are_told(pico_folder, tmp_path):
    dense = open_model(str(pico_folder), dtype="float32")
    make_evaluator(dense, tmp_path, folder=tmp_path / "prepared")
    file = tmp_path / "prepared" / "statistics" / "layer-002.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(RunFolderError, match=r"statistics/layer-002.safetensors must be intact, .* delete the folder"):
        make_evaluator(dense, tmp_path, folder=tmp_path / "prepared")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("widths", "guess", "criterion.widths must be one of magnitude, wanda, .*, but is 'guess'"),
        ("weights", "taylor", "criterion.weights must be one of magnitude, wanda, .*, but is 'taylor'"),
        ("update", "tuning", "criterion.update must be one of none, bias, least_squares, but is 'tuning'"),
        ("pattern", "4:2", "criterion.pattern must be N:M with 0 < N < M, but is '4:2'"),
        ("pattern", "half", "criterion.pattern must be N:M with 0 < N < M, but is 'half'"),
    ],
)
def test_unknown_criterion(field, value, message):
    with pytest.raises(SettingError, match=message):
        Criterion(**{field: value})
