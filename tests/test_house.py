"""The table of who may import whom, and the faces of the packages."""

import ast
import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Package: (ours that it may import, heavy libraries that it must not import).
MAY_IMPORT: dict[str, set[str]] = {
    "space": set(),
    "evaluator": {"space"},
    "predictor": {"space"},
    "search": {"space", "evaluator", "predictor"},
}
MUST_NOT_IMPORT: dict[str, set[str]] = {
    "space": {"torch", "transformers", "xgboost", "sklearn", "scipy", "optuna", "pandas"},
    "evaluator": {"xgboost", "sklearn", "optuna"},
    "predictor": {"torch", "transformers", "optuna", "pickle", "joblib"},
    "search": {"pickle", "xgboost", "sklearn"},
}


def imported(package: str) -> set[tuple[str, str]]:
    """Return (file, top-level module) of every import statement in a package, those inside functions included."""
    found = set()
    for path in sorted((ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [package if node.level else str(node.module)]
            found |= {(str(path.relative_to(ROOT)), name.split(".")[0]) for name in names}
    return found


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_follow_the_table(package):
    names = imported(package)
    assert names, f"{package} has no import at all, so this test reads the wrong folder"
    forbidden = (set(MAY_IMPORT) - MAY_IMPORT[package] - {package}) | MUST_NOT_IMPORT[package]
    assert sorted((path, name) for path, name in names if name in forbidden) == []


def test_a_question_needs_no_torch():
    code = (
        "import sys, space, predictor; "
        "print(sorted({'torch', 'transformers', 'evaluator', 'search'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_a_refusal_waits_for_no_library():
    code = (
        "import sys; from search.cli import _guarded, app; "
        "code = _guarded(lambda: app(['run', '--model=m', '--budget=parameters=0.8', '--set=search.rounds=0']));"
        "print(code, sorted({'torch', 'sklearn', 'pandas', 'scipy', 'optuna', 'plotly'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "2 []"
    assert "'search.rounds'" in run.stderr


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_all_is_sorted_and_importable(package):
    module = importlib.import_module(package)
    names = getattr(module, "__all__", [])
    constants_first = sorted(names, key=lambda name: (not name.isupper(), not name[0].isupper(), name))
    assert names == constants_first  # ruff's RUF022 order: CONSTANTS, Classes, functions
    assert [name for name in names if not hasattr(module, name)] == []


def test_everything_is_installed():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = [file.parent.relative_to(ROOT) for name in MAY_IMPORT for file in (ROOT / name).rglob("__init__.py")]
    assert len(found) > 4
    assert sorted(".".join(path.parts) for path in found) == sorted(listed)
