"""Encoders that learn from shifted images in turn with an algorithm."""

import pytest
import torch as th
from stable_baselines3.common.env_util import make_vec_env

from sb3_jepa import JepaCallback, NextLatentPrediction
from sb3_jepa.common.observations import by_key
from tests.algorithms.test_matrix import ACTIONS, OBSERVATIONS
from tests.alternating.test_alternating import make_model
from tests.conftest import FakeEnv
from tests.parts.test_random_shift import offsets_of

PAD = 2


class RecordInputs(NextLatentPrediction):
    """Keeps what it learns from."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.seen = []

    def forward(self, batch):
        self.seen.append((batch.observations, batch.next_observations))
        return super().forward(batch)


class ShiftedPrediction(RecordInputs):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, random_shift=PAD, **kwargs)


def learn_from(algorithm: str, observation: str, objective_class) -> list:
    """What the objective saw. Only the first minibatch is comparable: a shift takes random numbers."""
    model = make_model(algorithm, observation)
    callback = JepaCallback(objective_class=objective_class)
    model.learn(48, callback=callback)
    return next(iter(callback.objectives.values())).seen


@pytest.mark.parametrize("observation", ["image", "Dict", "frames of Gymnasium"])
@pytest.mark.parametrize("algorithm", ["PPO", "DQN"])
def test_an_objective_learns_from_shifted_images(algorithm, observation):
    plain = learn_from(algorithm, observation, RecordInputs)[0]
    shifted = learn_from(algorithm, observation, ShiftedPrediction)[0]
    all_draws = []
    for one, other in zip(plain, shifted, strict=True):
        for key, original in by_key(one).items():
            moved = by_key(other)[key]
            if original.ndim < 4:
                assert th.equal(moved, original)
                continue
            planes = [batch.movedim(-1, 2).flatten(1, 2) if batch.ndim == 5 else batch for batch in (original, moved)]
            draws = [offsets_of(*pair, pad=PAD) for pair in zip(*planes, strict=True)]
            assert all(draws)
            all_draws.append(tuple(draw[0] for draw in draws))
    assert all(len(set(draws)) > 5 for draws in all_draws)
    assert len(set(all_draws)) == len(all_draws)


def test_the_algorithm_itself_sees_images_as_they_are():
    """If the objective moves no weight, the shift changes none of the algorithm's first update."""
    weights = []
    for objective_class in (RecordInputs, ShiftedPrediction):
        model = make_model("PPO", "image")
        callback = JepaCallback(objective_class=objective_class, learning_rate=1e-30)
        model.learn(32, callback=callback)
        assert callback.objectives["shared"].seen
        weights.append(model.policy.state_dict())
    assert all(th.allclose(one, weights[1][name]) for name, one in weights[0].items())


def test_a_shift_without_an_image_is_refused_before_training():
    env = make_vec_env(lambda: FakeEnv(OBSERVATIONS["vector"], ACTIONS["Discrete"]), seed=0)
    model = make_model("DQN", env=env)
    with pytest.raises(ValueError, match=r"`random_shift` must be 0 for observations without an image"):
        model.learn(8, callback=JepaCallback(objective_class=ShiftedPrediction))
    assert model.num_timesteps == 0
