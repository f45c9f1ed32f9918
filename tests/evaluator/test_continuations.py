"""What is common goes through the model once, and no score is another for it."""

import random
from dataclasses import replace

import pytest
import torch

from evaluator import Evaluator, PairStore, Texts, open_model, standalone
from evaluator.harness.continuations import Continuations
from evaluator.harness.prefixes import Question, grouped, questions_of
from space import Architecture, Criterion, MeasurementError
from tests.pico import PICOS, save_pico_of


def words(rng, count):
    return tuple(rng.randrange(3, 150) for _ in range(count))


def asked(seed=0, common=40):
    """Contexts of which half begin alike, each with one to three continuations of one to four tokens."""
    rng = random.Random(seed)
    beginning = words(rng, common)
    pairs = []
    for index in range(24):
        context = (beginning if index % 2 else ()) + words(rng, rng.randrange(3, 12))
        pairs += [(context, words(rng, rng.randrange(1, 5))) for _ in range(rng.randrange(1, 4))]
    rng.shuffle(pairs)
    return pairs


def both(model, pairs):
    shared, alone = Continuations(model), Continuations(model, share=False)
    return shared, shared.score(pairs), alone, alone.score(pairs)


@pytest.mark.parametrize("kind", PICOS)
def test_every_family_scores_what_is_shared_as_what_is_not(kind, tmp_path):
    model = open_model(str(save_pico_of(kind, tmp_path)), dtype="float32")
    shared, mine, alone, plain = both(model, asked())
    assert [found.value for found in mine] == pytest.approx([found.value for found in plain], abs=2e-5)
    assert [found.greedy for found in mine] == [found.greedy for found in plain]
    if getattr(model.model.config, "sliding_window", None) is None:
        assert shared.tokens < 0.5 * alone.tokens
    else:  # sequences are longer than the window, where nothing is shared
        assert shared.tokens == alone.tokens


def test_within_a_sliding_window_what_is_common_is_shared(tmp_path):
    model = open_model(str(save_pico_of("mistral", tmp_path, sliding_window=100)), dtype="float32")
    shared, mine, alone, plain = both(model, asked())
    assert [found.value for found in mine] == pytest.approx([found.value for found in plain], abs=2e-5)
    assert shared.tokens < 0.5 * alone.tokens


@pytest.mark.parametrize("removed", [(0,), (2, 3), (0, 1, 2, 3, 4, 5)])
def test_models_without_attention_score_alike_too(pico, removed, tmp_path):
    dense = Architecture.dense(pico.layout)
    architecture = dense.replace(5, mlp_width=24).replace(4, kv_groups=2)
    for layer in removed:
        architecture = architecture.replace(layer, kv_groups=0)
    texts = Texts({"calibrate": torch.arange(64).view(1, 64) + 3}, {"calibrate": ""})
    store = PairStore(tmp_path / "pairs.db")
    judge = Evaluator(pico, texts, store, criterion=Criterion("magnitude", "magnitude", "none"))
    judge.surgeon.install(architecture)
    model = replace(pico, model=standalone(pico, architecture))
    _, mine, _, plain = both(model, asked())
    assert [found.value for found in mine] == pytest.approx([found.value for found in plain], abs=2e-5)
    store.close()


def test_small_batches_change_nothing(pico):
    pairs = asked()
    whole, small = Continuations(pico).score(pairs), Continuations(pico, batch_tokens=16).score(pairs)
    assert [found.value for found in small] == pytest.approx([found.value for found in whole], abs=2e-5)


def test_what_is_too_long_loses_its_beginning(pico):
    rng = random.Random(1)
    longest = pico.longest_sequence
    context, continuation = words(rng, 2 * longest), words(rng, 3)
    scorer = Continuations(pico)
    [long] = scorer.score([(context, continuation)])
    # As many tokens as the model has positions, and the last one, which is only predicted.
    tokens = torch.tensor([[*context, *continuation][-longest - 1 :]])
    with torch.inference_mode():
        logprobs = pico.model(tokens[:, :-1]).logits[0, -3:].log_softmax(dim=-1)
    assert long.value == pytest.approx(float(logprobs.gather(1, tokens[0, -3:, None]).sum()), abs=1e-4)
    assert scorer.cut == 1


@pytest.mark.parametrize(("context", "continuation"), [((), (5,)), ((5,), ()), ((5,), (6,) * 200)])
def test_what_cannot_be_scored_is_refused(pico, context, continuation):
    with pytest.raises(MeasurementError, match="1 to 128 tokens and follow at least one"):
        Continuations(pico).score([(context, continuation)])


def test_greedy_is_what_the_model_would_write(pico):
    context = (5, 6, 7, 8)
    with torch.inference_mode():
        best = int(pico.model(torch.tensor([context])).logits[0, -1].argmax())
    right, wrong = Continuations(pico).score([(context, (best,)), (context, ((best + 1) % 100,))])
    assert right.greedy
    assert not wrong.greedy
    assert right.value > wrong.value


def test_equal_contexts_are_one_question():
    pairs = [((1, 2), (3,)), ((1, 4), (3,)), ((1, 2), (5, 6))]
    questions = questions_of(pairs, 100, share=True)
    assert questions == [Question((1, 2), ((3,), (5, 6)), (0, 2)), Question((1, 4), ((3,),), (1,))]
    assert len(questions_of(pairs, 100, share=False)) == 3


def test_contexts_are_grouped_by_long_beginnings_alone():
    one, other = tuple(range(100)), tuple(range(200, 300))
    contexts = [*((*one, 1000 + i, i) for i in range(5)), *((*other, i) for i in range(6)), (7, 8), (7, 9)]
    random.Random(0).shuffle(contexts)
    groups = grouped(questions_of([(context, (1,)) for context in contexts], 10**6, share=True))
    assert [(group.prefix, len(group.questions)) for group in groups] == [((), 2), (one, 5), (other, 6)]


def test_a_context_that_is_a_beginning_itself_keeps_a_token():
    beginning = tuple(range(300))
    groups = grouped(questions_of([(beginning, (1,)), ((*beginning, 5), (1,))], 10**6, share=True))
    assert [group.prefix for group in groups] == [beginning[:-1]]


def test_nothing_to_score():
    assert grouped([]) == []
