"""The content of best.json, and the rows that the report draws."""

from collections.abc import Mapping, Sequence
from typing import Any

from evaluator import Evaluator, Measurement, Pair, difference
from predictor import AccuracyPredictor, Prediction
from search.comparison import FORMAT, PairRow
from search.config import RunConfig
from space import Architecture, SearchSpace


def best_record(
    config: RunConfig,
    judge: Evaluator,
    space: SearchSpace,
    everyone: Mapping[str, Architecture],
    measured: Mapping[str, Mapping[str, Measurement]],
    plain: Mapping[str, tuple[Architecture, Measurement]],
    predictor: AccuracyPredictor | None,
    unseen: Prediction | None,
    rounds: Sequence[Mapping[str, Any]],
    learned: Mapping[str, Any],
    pareto: Mapping[str, Any] | None,
    mixes: Mapping[str, Any],
    latency: Mapping[str, Any] | None,
    wall_seconds: float,
    environment: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the content of best.json.

    Args:
        config: the run's settings.
        judge: what measured.
        space: the search space.
        everyone: the baselines and, as `winner`, the winner.
        measured: by split, then by name in `everyone`.
        plain: baselines without the criterion's update, on the report text.
        predictor: the last one fitted; None where too little was measured for one.
        unseen: of the winner, by a predictor that never saw it; None without a predictor.
        rounds: what each round reached.
        learned: what the predictor learned, see `search.learned`.
        pareto: the Pareto set, see `search.pareto_set`; None where nothing was searched against.
        mixes: what the winner measures under each calibration mix, see `search.mixes`.
        latency: of the winner and the dense model, see `search.latency`; None where it was not asked for.
        wall_seconds: of this process and of what earlier ones measured for the run.
        environment: what it ran with.
    """
    layout, texts, aim = space.layout, judge.texts, judge.students.aim
    winner = everyone["winner"]
    return {
        "format": FORMAT,
        "model": config.model,
        "weights_hash": judge.dense.weights_hash,
        "budgets": list(config.budget),
        "seed": config.seed,
        "layout": layout.to_dict(),
        "architecture": winner.to_dict(),
        "fingerprint": winner.fingerprint,
        "cost": space.amounts(winner),
        "dense_cost": space.amounts(Architecture.dense(layout)),
        "predicted": _predicted(predictor, unseen, judge) if predictor and unseen else None,
        "measured": {split: rows["winner"].to_dict() for split, rows in measured.items()},
        "baselines": {
            name: {
                "architecture": architecture.to_dict(),
                "fingerprint": architecture.fingerprint,
                "cost": space.amounts(architecture),
                "measured": {split: rows[name].to_dict() for split, rows in measured.items()},
                # Token by token, below 0 where the winner is better.
                "winner_less_this": {
                    split: difference(rows["winner"], rows[name]).to_dict() for split, rows in measured.items()
                },
            }
            for name, architecture in everyone.items()
            if name != "winner"
        }
        | {
            name: {
                "architecture": architecture.to_dict(),
                "fingerprint": architecture.fingerprint,
                "cost": space.amounts(architecture),
                "measured": {"report": measurement.to_dict()},
                "winner_less_this": {
                    "report": difference(measured["report"]["winner"], measurement, same_text=True).to_dict()
                },
            }
            for name, (architecture, measurement) in plain.items()
        },
        "quality": predictor.quality.to_dict() if predictor else {},
        "rounds": list(rounds),
        "learned": dict(learned),
        "pareto": pareto,
        "latency": latency,
        "texts": {split: f"{texts.sources[split]}, {tokens.numel():,} tokens" for split, tokens in texts.tokens.items()}
        | ({split: f"{items.title}, {items.tokens:,} tokens" for split, items in aim.items.items()} if aim else {}),
        "aim": {"ask": list(config.tasks.ask), "loss": aim.loss, "signal": aim.signal, "seen": dict(aim.seen)}
        if aim
        else None,
        "calibration": {**texts.calibration, **({"winner_under": dict(mixes)} if mixes else {})},
        "recovery": str(judge.students.recovery) if judge.students.recovery else None,
        "protocols": judge.describe(),
        "tokens_through_model": judge.store.tokens_measured() + texts.tokens["calibrate"].numel(),
        "wall_seconds": round(wall_seconds, 1),
        "environment": dict(environment),
    }


def _predicted(predictor: AccuracyPredictor, unseen: Prediction, judge: Evaluator) -> dict[str, Any]:
    return {
        "target": predictor.target.kind,
        "value": float(unseen.value[0]),
        "lower": float(unseen.lower[0]),
        "upper": float(unseen.upper[0]),
        "standard_error": predictor.quality.rmse_log * float(unseen.value[0]),
        "tokens": judge.protocol("search").tokens,
        "protocol": predictor.protocol,
    }


def pair_rows(pairs: Sequence[Pair], space: SearchSpace, predictor: AccuracyPredictor | None) -> list[PairRow]:
    """Return measured pairs for the report, each with what cross-validation predicted of it without having seen it.

    Single changes are what the prior is made of, of where slopes were taken the features know the measurement, and the
    predictor was trained on all others: any other prediction of a pair would prove nothing.

    Args:
        pairs: what the predictor was fitted on.
        space: what tells costs.
        predictor: as fitted, not as loaded; None where too little was measured for one.
    """
    rows = []
    held_out = predictor.held_out if predictor else {}
    for pair in pairs:
        told, lower, upper = held_out.get(pair.architecture.fingerprint, (None, None, None))
        rows.append(
            PairRow(
                fingerprint=pair.architecture.fingerprint,
                architecture=pair.architecture,
                kind=pair.origin,
                cost=space.amounts(pair.architecture),
                kl=pair.measurement.kl,
                kl_standard_error=pair.measurement.kl_standard_error,
                perplexity=pair.measurement.perplexity,
                predicted=told,
                lower=lower,
                upper=upper,
            )
        )
    return rows
