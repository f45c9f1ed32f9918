"""Pareto sets: which points no other beats, how much they reach, and which few of them reach most of it.

Points are rows of objectives, all of them to be as low as possible.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def non_dominated(values: ArrayLike) -> NDArray[np.bool_]:
    """Return which points (points,) no other beats in one objective without being worse in another.

    Args:
        values: (points, objectives); of points that are equal in all of them, either all are returned or none.
    """
    points = np.asarray(values, dtype=np.float64)
    never_worse = (points[:, None] <= points).all(axis=2)  # [i, j]: i than j
    better = (points[:, None] < points).any(axis=2)
    return np.asarray(~(never_worse & better).any(axis=0))


def hypervolume(values: ArrayLike, reference: ArrayLike) -> float:
    """Return the exact volume of what is worse than one of the points and better than the reference.

    Args:
        values: (points, objectives); points that are not better than the reference in every objective add nothing.
        reference: (objectives,).

    Source: Zitzler and Thiele, Multiobjective optimization using evolutionary algorithms (1998); cut into slices
    along the last objective as by While et al., A faster algorithm for calculating hypervolume (2006).
    """
    end = np.asarray(reference, dtype=np.float64)
    points = np.asarray(values, dtype=np.float64).reshape(-1, len(end))
    points = points[(points < end).all(axis=1)]
    return _volume(points[non_dominated(points)], end)


def _volume(points: NDArray[np.float64], end: NDArray[np.float64]) -> float:
    if not len(points):
        return 0.0
    if points.shape[1] == 1:
        return float(end[0] - points.min())
    points = points[np.argsort(points[:, -1], kind="stable")]
    thickness = np.diff([*points[:, -1], end[-1]])
    slices = (points[: i + 1, :-1] for i in range(len(points)))
    return float(sum(t * _volume(s[non_dominated(s)], end[:-1]) for s, t in zip(slices, thickness, strict=True) if t))


def widest(values: ArrayLike, reference: ArrayLike, count: int) -> list[int]:
    """Return the indices of a few points that together reach most of the hypervolume, the first adding most.

    Args:
        values: (points, objectives).
        reference: (objectives,).
        count: how many to return; fewer where no other adds anything.

    Source: greedy, within 1 - 1/e of the best choice; Guerreiro, Fonseca and Paquete, Greedy hypervolume subset
    selection in low dimensions (2016).
    """
    points = np.asarray(values, dtype=np.float64)
    chosen: list[int] = []
    reached = 0.0
    while len(chosen) < count:
        volumes = [hypervolume(points[[*chosen, index]], reference) for index in range(len(points))]
        best = int(np.argmax(volumes)) if volumes else 0
        if not volumes or volumes[best] <= reached:
            break
        chosen.append(best)
        reached = volumes[best]
    return chosen
