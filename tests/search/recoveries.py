"""Shared by the tests of recovered models: the command in this process, what is learned from, and weights."""

import json

import torch
from safetensors.torch import load_file

from tests.search.command import call, refusal

SHORT = ("--steps", 4, "--step-tokens", 64)
QUESTIONS = [
    {"question": f"Once upon a time Tom had {count} cats. How many had he?", "answer": f"He had {count} cats. " * 2}
    for count in (2, 3, 5, 7)
]
LONG = {"question": "Once upon a time?", "answer": "He was very happy. " * 40}


def recovered(capsys, *arguments):
    """Call a recovery that has to succeed and return its JSON."""
    assert call("recover", *arguments, "--json") == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys, *arguments):
    """Call a recovery that has to be refused and return the sentence."""
    assert call("recover", *arguments) == 2
    return refusal(capsys.readouterr().err)


def jsonl(folder, *rows):
    """Write rows into a file of a folder and return it."""
    file = folder / "rows.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return file


def weights(folder):
    """Return the tensors of a model's folder by name."""
    return load_file(folder / "model.safetensors")


def same(one, other):
    """Return whether two models' tensors are the same, bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def nothing(*_, **__):
    """Stand for work that is not to be done."""
    raise AssertionError("no work is to be done")
