import pytest

from predictor import AccuracyPredictor
from tests.predictor.synthetic import DENSE, SINGLES, draw, measure
from tests.space.layouts import SMOLLM2_135M


def pairs_of(seed, count=100):
    architectures = [DENSE, *SINGLES, *draw(count, seed)]
    return architectures, measure(architectures, seed)


@pytest.fixture(scope="session")
def pairs():
    return pairs_of(0)


@pytest.fixture(scope="session")
def predictor(pairs):
    return AccuracyPredictor.fit(SMOLLM2_135M, *pairs, protocol="synthetic", seed=3)
