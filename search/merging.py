"""Merging recovered models of one shape into one, and exporting it."""

from collections.abc import Sequence
from pathlib import Path

from evaluator import DenseModel, hash_weights
from evaluator.recovery.merge import average, slerp
from evaluator.recovery.student import open_student
from search.environment import describe_environment
from search.export import huggingface
from search.export.place import check_target, record_of
from space import ModelError, SettingError

METHODS = ("slerp", "average")


def merge_folders(
    folders: Sequence[Path], out: Path, method: str = "slerp", share: float = 0.5, start: Path | None = None
) -> Path:
    """Merge models and export the result.

    Args:
        folders: of the models, all of one shape; two for `slerp`.
        out: folder to make.
        method: `slerp` or `average`.
        share: of the second model, for `slerp`.
        start: what the models were before they were recovered; None turns whole weights, not what was learned.

    Returns:
        The folder.

    Raises:
        SettingError: the method is unknown, or takes another number of models.
        ModelError: a model cannot be opened, or they differ in shape.
        ExportError: the target holds something else, or the export did not verify.
    """
    if method not in METHODS:
        raise SettingError(f"--method must be one of {', '.join(METHODS)}, but is {method!r}; choose one.")
    if method == "slerp" and len(folders) != 2:
        raise SettingError(
            f"SLERP is between 2 models, but {len(folders)} were given; give two, or --method average for several."
        )
    if start is not None and method != "slerp":
        raise SettingError("--start is of SLERP, since a mean is the same with and without; leave it out.")
    check_target(out)
    students = [open_student(folder) for folder in folders]
    merge_into(students, method, share, open_student(start) if start else None)
    into = students[0]
    record = record_of(folders[0])
    merged = {
        "method": method,
        "of": [str(folder) for folder in folders],
        "share": share if method == "slerp" else None,
    }
    record = {**record, "merged": merged, "environment": describe_environment(into)}
    record.pop("recovery", None)  # of the first alone
    huggingface.write_folder(into.model, into, out, record)
    return out


def merge_into(students: Sequence[DenseModel], method: str, share: float, start: DenseModel | None = None) -> str:
    """Give the first of several models the weights of their merger; return the hash of these.

    Raises:
        ModelError: they differ in shape.
    """
    kept = [student.model.config.to_dict().get("pruning") for student in students]
    for student, own in zip(students, kept, strict=True):
        if own != kept[0]:
            raise ModelError(
                f"Models must be of one architecture to be merged, but {student.name} has other layers than "
                f"{students[0].name}; merge what was one model."
            )
    states = [student.model.state_dict() for student in students]
    if method == "slerp":
        merged = slerp(states[0], states[1], share, start.model.state_dict() if start else None)
    else:
        merged = average(states)
    students[0].model.load_state_dict(merged)
    return hash_weights(students[0].model)
