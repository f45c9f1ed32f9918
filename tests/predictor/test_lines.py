import numpy as np

from predictor.lines import Lines


def test_lines_are_those_of_numpy():
    rng = np.random.default_rng(0)
    told = []
    for _ in range(6):
        places = [sorted({*rng.integers(0, 20, size=size).tolist()}) for size in (3, 7, 1)]
        told.append([[(float(x), float(rng.normal())) for x in own] for own in places] + [[]])
    lines = Lines.through(told)
    functions, asked = (each.ravel() for each in np.meshgrid(np.arange(6), np.arange(-2, 23, 0.5), indexing="ij"))
    found = lines.at(functions, asked)
    for value in range(4):
        expected = [
            np.interp(x, *zip(*told[function][value], strict=True), left=np.nan, right=np.nan)
            if told[function][value]
            else np.nan
            for function, x in zip(functions, asked, strict=True)
        ]
        np.testing.assert_allclose(found[:, value], expected, rtol=1e-12, atol=1e-14)
    assert 0 < np.isnan(found).mean() < 1


def test_where_nothing_was_told_nothing_is_known():
    assert np.isnan(Lines.through([[[]], [[]]]).at(np.array([0, 1]), np.array([0.0, 3.0]))).all()
