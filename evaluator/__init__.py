"""What is true: the only code that opens, prunes and runs real weights, and keeps what it measured.

Imports `space`, torch and transformers; never `predictor` or `search`. The way in is `Evaluator`: it owns a dense
model, installs one architecture after another in it by slicing and masking, measures each on text and keeps the pair.
"""

from transformers import AutoConfig, AutoModelForCausalLM

from evaluator.builtin import PACKAGED_MODELS
from evaluator.calibration_set import SELF, Calibration, CalibrationSet, gather_set
from evaluator.checkpoint import DenseModel, choose_dtype, hash_weights, open_model
from evaluator.claims import is_forgotten, this_process
from evaluator.database import Database, drop_schema, reach, schema_name, unreachable
from evaluator.engine import Engine
from evaluator.evaluator import Evaluator
from evaluator.filters import Filters
from evaluator.generation import Writing
from evaluator.measurement import Difference, Measurement, Protocol, difference
from evaluator.precision import Agreement, agreement_with_float32
from evaluator.pruned_model import PRUNED
from evaluator.rows import PairTable
from evaluator.slopes import Slopes
from evaluator.splits import SPLITS, SplitSizes, Texts, load_texts, prepare_texts, text_to_write
from evaluator.standalone import standalone
from evaluator.store import Pair, PairStore
from evaluator.stream import Stream

# Where secateur is installed its exports load without trust_remote_code.
for _config, _model in PRUNED.values():
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoModelForCausalLM.register(_config, _model, exist_ok=True)

__all__ = [
    "PACKAGED_MODELS",
    "PRUNED",
    "SELF",
    "SPLITS",
    "Agreement",
    "Calibration",
    "CalibrationSet",
    "Database",
    "DenseModel",
    "Difference",
    "Engine",
    "Evaluator",
    "Filters",
    "Measurement",
    "Pair",
    "PairStore",
    "PairTable",
    "Protocol",
    "Slopes",
    "SplitSizes",
    "Stream",
    "Texts",
    "Writing",
    "agreement_with_float32",
    "choose_dtype",
    "difference",
    "drop_schema",
    "gather_set",
    "hash_weights",
    "is_forgotten",
    "load_texts",
    "open_model",
    "prepare_texts",
    "reach",
    "schema_name",
    "standalone",
    "text_to_write",
    "this_process",
    "unreachable",
]
