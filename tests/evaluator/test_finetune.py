"""Fine-tuning pruned models: what is learned, what stays, and going on after a kill."""

import copy
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from evaluator import open_model
from evaluator.recovery.batches import batch_of, in_order, samples_of, schedule
from evaluator.recovery.checkpoint import load_checkpoint
from evaluator.recovery.examples import Sample
from evaluator.recovery.finetune import Recipe, fine_tune
from evaluator.recovery.objective import Objective
from evaluator.recovery.trainable import Trainable
from evaluator.standalone import standalone
from space import Criterion, MeasurementError, ModelError, SettingError
from tests.evaluator.pieces import logits_of, make_surgeon, mixed
from tests.pico import PICOS, pico_tokens, save_pico_of

SHORT = Recipe(steps=6, step_tokens=64, rank=4, learning_rate=1e-2, evaluate_every=2, checkpoint_every=2)


def pruned(dense):
    """Return a student of the pico Llama that lacks something of everything, apart from the dense model."""
    surgeon = make_surgeon(dense)
    surgeon.install(mixed(dense))
    # Its weights are the installed ones, which stay as they are when the surgeon goes on.
    student = replace(dense, model=standalone(dense, mixed(dense)))
    surgeon.restore()
    return student


def test_a_batch_learns_answers_alone():
    batch = batch_of([Sample((5, 6, 7, 8), 2), Sample((9, 10), 0)])
    assert batch.tokens.tolist() == [[5, 6, 7, 8], [9, 10, 0, 0]]
    assert batch.learned.tolist() == [[False, True, True], [True, False, False]]
    assert batch.targets.tolist() == [7, 8, 10]


def test_a_schedule_takes_all_before_any_again():
    samples = [Sample(tuple(range(2 + index % 5)), 1) for index in range(40)]
    batches = schedule(samples, 16, 60, seed=3)
    assert len(batches) == 60
    assert all(len(own) * max(len(samples[index].tokens) for index in own) <= 16 for own in batches)
    flat = [index for own in batches for index in own]
    assert sorted(flat[:40]) == list(range(40))
    assert batches == schedule(samples, 16, 60, seed=3) != schedule(samples, 16, 60, seed=4)
    assert sorted(index for own in in_order(samples, 16) for index in own) == list(range(40))


def test_losses_are_what_the_model_says(pico):
    batch = batch_of([Sample((5, 6, 7, 8), 2), Sample((9, 10, 11), 1)])
    with torch.no_grad():
        loss = Objective(pico).loss(batch)
        logprobs = pico.model(batch.tokens, use_cache=False).logits.log_softmax(dim=-1)
    by_hand = -(logprobs[0, 1, 7] + logprobs[0, 2, 8] + logprobs[1, 0, 10] + logprobs[1, 1, 11]) / 4
    assert torch.allclose(loss, by_hand)


def test_divergence_from_the_teacher(pico):
    student = pruned(pico)
    batch = batch_of(samples_of(pico_tokens(2, 12)))
    with torch.no_grad():
        p = (pico.model(batch.tokens, use_cache=False).logits[:, :-1] / 2).log_softmax(dim=-1)
        q = (student.model(batch.tokens, use_cache=False).logits[:, :-1] / 2).log_softmax(dim=-1)
        by_hand = 4 * (p.exp() * (p - q)).sum(dim=-1).mean()
        assert torch.allclose(Objective(student, pico, 1.0, 2.0).loss(batch), by_hand, rtol=1e-4)
        assert float(Objective(pico, pico, 1.0).loss(batch)) == pytest.approx(0, abs=1e-6)
        mixed_loss = 0.25 * Objective(student, pico, 1.0).loss(batch) + 0.75 * Objective(student).loss(batch)
        assert torch.allclose(Objective(student, pico, 0.25).loss(batch), mixed_loss)


@pytest.mark.parametrize("rank", [4, 0])
def test_a_pruned_model_learns_and_the_dense_one_stays(pico, rank):
    before = logits_of(pico.model)
    student = pruned(pico)
    own = logits_of(student.model)
    samples = samples_of(pico_tokens(12, 16))
    recipe = replace(SHORT, rank=rank, steps=30, learning_rate=None if rank == 0 else 1e-2)
    first = Objective(student).mean(samples, 64)
    told = fine_tune(student, samples, [], recipe)
    assert Objective(student).mean(samples, 64) < first - 0.1
    assert told.steps == told.best_step == 30
    assert not any(weight.requires_grad for weight in student.model.parameters())
    assert not torch.equal(logits_of(student.model), own)
    if rank:  # whole weights are those of the dense model where nothing was pruned: see `standalone`
        assert torch.equal(logits_of(pico.model), before)


@pytest.mark.parametrize("kind", PICOS)
def test_every_family_is_trained_and_merged(kind, tmp_path):
    dense = open_model(str(save_pico_of(kind, tmp_path)), dtype="float32")
    surgeon = make_surgeon(dense)
    architecture = surgeon.installed.replace(0, kv_groups=0).replace(1, mlp_width=0).replace(2, mlp_width=24)
    surgeon.install(architecture)
    student = replace(dense, model=standalone(dense, architecture))
    samples = samples_of(pico_tokens(8, 16))
    first = Objective(student).mean(samples, 64)
    names = sorted(student.model.state_dict())
    trainable = Trainable(student, 2, 2.0, 0)
    trained = {name.split(".lora_")[0] for name in trainable.weights}
    trainable.finish(keep=False)
    expected = 3 if dense.layout.record.qkv != "separate" else 5
    assert len(trained) >= expected
    fine_tune(student, samples, [], replace(SHORT, steps=12))
    assert sorted(student.model.state_dict()) == names  # merged, nothing left over
    assert Objective(student).mean(samples, 64) < first


@pytest.mark.parametrize("rank", [4, 0])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "phi3"])
def test_zeros_stay_zeros(kind, rank, tmp_path):
    dense = open_model(str(save_pico_of(kind, tmp_path)), dtype="float32")
    surgeon = make_surgeon(dense, Criterion(pattern="2:4"))
    sparse = surgeon.installed
    for index in range(len(sparse.layers)):
        sparse = sparse.replace(index, attention_sparsity=0.5, mlp_sparsity=0.5)
    surgeon.install(sparse)
    student = replace(dense, model=copy.deepcopy(dense.model))
    before = {name: weight.clone() for name, weight in student.model.named_parameters()}
    samples = samples_of(pico_tokens(12, 16))
    first = Objective(student).mean(samples, 64)
    fine_tune(student, samples, [], replace(SHORT, rank=rank, steps=20, learning_rate=None if rank == 0 else 1e-2))
    after = dict(student.model.named_parameters())
    assert after.keys() == before.keys()
    halves = [name for name, weight in before.items() if weight.dim() == 2 and float(weight.eq(0).float().mean()) > 0.4]
    assert len(halves) >= 4 * len(sparse.layers)
    for name in halves:
        assert torch.equal(after[name].eq(0), before[name].eq(0)), name
        assert not torch.equal(after[name], before[name]), name
    assert Objective(student).mean(samples, 64) < first - 0.05


@pytest.mark.parametrize("rank", [2, 0])
def test_what_was_trained_in_bfloat16_is_the_same_when_it_is_opened_again(stories, tmp_path, rank):
    student = open_model(str(stories), dtype="bfloat16")
    before = {name: buffer.clone() for name, buffer in student.model.named_buffers()}
    own = logits_of(student.model)
    fine_tune(student, samples_of(pico_tokens(8, 16)), [], replace(SHORT, rank=rank))
    assert student.dtype == "bfloat16"
    after = dict(student.model.named_buffers())
    assert before.keys() == after.keys()
    assert all(after[name].dtype == buffer.dtype for name, buffer in before.items())
    student.model.save_pretrained(tmp_path)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    assert torch.equal(logits_of(opened), logits_of(student.model))
    assert not torch.equal(logits_of(opened), own)


def test_recomputing_changes_nothing(stories):
    dense = open_model(str(stories), dtype="float32")
    samples = samples_of(pico_tokens(8, 16))
    found = []
    for recompute in (False, True):
        student = replace(dense, model=open_model(str(stories), dtype="float32").model)
        told = fine_tune(student, samples, [], replace(SHORT, recompute=recompute))
        found.append((told.losses, logits_of(student.model)))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    assert torch.allclose(found[0][1], found[1][1], atol=1e-4)


def test_it_stops_where_held_out_text_gets_worse(pico):
    student = pruned(pico)
    samples, held_out = samples_of(pico_tokens(4, 16)), samples_of(pico_tokens(4, 16, seed=5))
    recipe = replace(SHORT, steps=200, learning_rate=5e-2, patience=2, evaluate_every=5)
    told = fine_tune(student, samples, held_out, recipe)
    losses = dict(told.looks)
    assert told.steps < 200
    assert losses[told.best_step] == min(losses.values())
    # What is left in the model are the weights of the best look, not the last.
    assert Objective(student).mean(held_out, 64) == pytest.approx(losses[told.best_step], rel=1e-4)


def test_refusals(pico):
    student, samples = pruned(pico), samples_of(pico_tokens(2, 16))
    with pytest.raises(SettingError, match="learns from a dense model"):
        fine_tune(student, samples, [], replace(SHORT, distillation=0.5))
    with pytest.raises(SettingError, match="samples to learn from"):
        fine_tune(student, [], [], SHORT)
    with pytest.raises(SettingError, match="steps of a recovery must be at least 1, but is 0"):
        Recipe(steps=0)
    own = logits_of(student.model)
    student.model.lm_head.weight.data[5] = torch.nan
    with pytest.raises(MeasurementError, match="step 1; lower the learning rate"):
        fine_tune(student, samples, [], SHORT)
    student.model.lm_head.weight.data[5] = 0
    assert logits_of(student.model).shape == own.shape  # nothing of peft is left


# Each run is a process of its own, forked after the imports and before anything is computed: those take longer than it.
KILLED = """
import os, signal, sys
from pathlib import Path
from evaluator import open_model
from evaluator.recovery.batches import samples_of
from evaluator.recovery.finetune import Recipe, fine_tune
from tests.pico import pico_tokens

model, folder = sys.argv[1], Path(sys.argv[2])
recipe = Recipe(steps=100, step_tokens=64, checkpoint_every=5, evaluate_every=20, patience=0)


def train(name, told):
    student, done = open_model(model, dtype="float32"), 0

    def progress(steps, note):
        nonlocal done
        done += steps
        os.write(told, f"{done}\\n".encode())

    samples, held_out = samples_of(pico_tokens(40, 32)), samples_of(pico_tokens(4, 32, 9))
    found = fine_tune(student, samples, held_out, recipe, folder=folder / name, progress=progress)
    assert len(found.losses) == 100
    student.model.save_pretrained(folder / f"{name}-done")


def run(name, kill_at=None):
    reading, writing = os.pipe()
    if not (process := os.fork()):
        os.close(reading)
        train(name, writing)
        os._exit(0)
    os.close(writing)
    with open(reading) as lines:
        for line in lines:
            if kill_at is not None and int(line) >= kill_at:
                os.kill(process, signal.SIGKILL)
                break
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == (0 if kill_at is None else -signal.SIGKILL)


run("undisturbed")
for kill_at in (8, 23, 41, 62, 97):
    run("killed", kill_at)
run("killed")
"""


def test_killed_five_times_it_ends_with_the_same_weights(stories, tmp_path):
    subprocess.run([sys.executable, "-c", KILLED, str(stories), str(tmp_path)], check=True)
    first, second = (
        AutoModelForCausalLM.from_pretrained(tmp_path / f"{name}-done") for name in ("undisturbed", "killed")
    )
    untouched = open_model(str(stories), dtype="float32").model
    own = second.state_dict()
    for name, weight in first.state_dict().items():
        assert torch.allclose(weight, own[name], rtol=1e-5, atol=1e-6), name
    assert not torch.equal(own["model.layers.0.mlp.up_proj.weight"], untouched.model.layers[0].mlp.up_proj.weight)


def test_a_damaged_checkpoint_is_named(stories, tmp_path):
    student = open_model(str(stories), dtype="float32")
    samples = samples_of(pico_tokens(8, 16))
    fine_tune(student, samples, [], SHORT, folder=tmp_path)
    [file] = tmp_path.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ModelError, match="checkpoint must be intact"):
        load_checkpoint(file, {}, torch.optim.AdamW([torch.zeros(1)]))
    # Of another recipe it is another file.
    again = open_model(str(stories), dtype="float32")
    fine_tune(again, samples, [], replace(SHORT, seed=1), folder=tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == 2
