"""What a step of recovery takes whose loss is taken part by part, by one that has all logits at once.

    python -m tests.benchmarks.recovery_step [--quick] [--seed N]

SmolLM2-135M with random low-rank additions of rank 16 learns 1,022 tokens of WikiText-2 validation, from what is given
and from itself without the additions. Both ways of each loss are timed in turns in this run; medians are divided.

| figure | meaning |
| --- | --- |
| `step_fraction` | of the loss on given tokens, and of the divergence from a dense model |
| `loss_difference` | largest relative difference of the two ways' losses |
"""

from functools import partial
from typing import Any
from unittest.mock import patch

import torch

from evaluator.recovery import parts
from evaluator.recovery.batches import batch_of, samples_of
from evaluator.recovery.objective import Objective
from evaluator.recovery.trainable import Trainable
from evaluator.sources import tokenise
from search.environment import describe_environment
from tests.benchmarks.record import DATA, arguments, finish
from tests.benchmarks.speed import in_turns, open_dense, ratio

SHARES = {"given": 0.0, "distilled": 1.0}


def main() -> None:
    """Time both ways of each loss and print the fractions."""
    options = arguments(__doc__ or "")
    turns, length = (2, 64) if options.quick else (5, 512)
    dense, student = open_dense(options.quick), open_dense(options.quick)
    batch = batch_of(samples_of(tokenise(dense, str(DATA / "text" / "wikitext2.valid.txt"))[: 2 * length].view(2, -1)))
    trainable = Trainable(student, 16, 2.0, options.seed)
    generator = torch.Generator().manual_seed(options.seed)
    for weight in trainable.weights.values():
        weight.data += 0.02 * torch.randn(weight.shape, generator=generator)
    figures: dict[str, Any] = {"step_fraction": {}, "loss_difference": 0.0}
    taken = {}
    for name, share in SHARES.items():
        objective = Objective(student, dense, share)

        def step(objective: Objective = objective) -> float:
            for weight in trainable.weights.values():
                weight.grad = None
            with torch.enable_grad():
                loss = objective.loss(batch)
                loss.backward()
            return float(loss.detach())

        def at_once(step: Any = step) -> float:
            with patch.object(parts, "_PART_BYTES", 2**60):
                return float(step())

        found = [step(), at_once()]
        figures["loss_difference"] = max(figures["loss_difference"], abs(found[0] / found[1] - 1))
        taken[name] = in_turns(turns, parts=partial(step), at_once=partial(at_once))
        figures["step_fraction"][name] = round(ratio(taken[name], "parts", "at_once"), 3)
    details = {"seed": options.seed, "environment": describe_environment(dense), "seconds": taken}
    finish("recovery_step", figures, details, options.quick)


if __name__ == "__main__":
    main()
