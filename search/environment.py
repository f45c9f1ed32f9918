"""What a number was computed with."""

import platform
import subprocess
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from evaluator import Agreement, DenseModel
from evaluator.timing import processor_name

_PACKAGES = ("secateur", "torch", "transformers", "numpy", "scikit-learn", "xgboost-cpu", "optuna")


def describe_environment(dense: DenseModel, agreement: Agreement | None = None) -> dict[str, Any]:
    """Return versions, processor, threads, dtype and commit of this process.

    Args:
        dense: the model at work.
        agreement: of its dtype with float32, where it was compared.
    """
    return {
        "python": platform.python_version(),
        **{name: _version(name) for name in _PACKAGES},
        "git": commit(),
        "platform": platform.system(),
        "processor": processor_name(),
        "threads": torch.get_num_threads(),
        "device": str(dense.model.device),
        "dtype": dense.dtype,
        **({"dtype_agreement": asdict(agreement)} if agreement else {}),
    }


def device_name(dense: DenseModel) -> str:
    """Return what a model runs on."""
    device = dense.model.device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def commit() -> str | None:
    """Return the commit of the source tree this runs from, with `+` where it has changes; None outside of one."""
    root = Path(__file__).parent.parent
    try:
        head = subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        changes = subprocess.run(
            ["git", "-C", root, "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip()[:12] + ("+" if changes.stdout.strip() else "")
