"""Updates that a GPU replays do what updates do that Python launches."""

import pytest
import torch as th
from stable_baselines3.common.env_util import make_vec_env

from sb3_jepa import TDJEPA
from sb3_jepa.zero_shot.cuda_graph import RecordedUpdate
from tests.zero_shot.test_td_jepa import PEERS, draw_batch, make_model

pytestmark = pytest.mark.skipif(not th.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("algorithm", PEERS)
@pytest.mark.parametrize("env", ["Pendulum-v1", "CartPole-v1"])
def test_a_replayed_update_equals_one_that_is_launched(env, algorithm):
    kwargs = dict(env=env, device="cuda", policy_kwargs=dict(exploration_noise=0.0), next_actions="policy")
    launched, replayed = make_model(algorithm, **kwargs), make_model(algorithm, **kwargs)
    update = RecordedUpdate(replayed._update, [replayed.policy.optimizer, replayed.policy.actor_optimizer])
    for number in range(8):
        batch = type(draw_batch(launched))(*(None if x is None else x.cuda() for x in draw_batch(launched)))
        # A schedule of the learning rate takes effect
        for model in (launched, replayed):
            for optimizer in (model.policy.optimizer, model.policy.actor_optimizer):
                if optimizer is not None:
                    optimizer.param_groups[0]["lr"] = 1e-2 / (1 + number)
        expected, losses = launched._update(batch), update(batch)
        for name, value in expected.items():
            assert losses[name].item() == pytest.approx(value.item(), rel=1e-3, abs=1e-4), (number, name)
    for name, value in launched.policy.state_dict().items():
        assert th.allclose(replayed.policy.state_dict()[name], value, rtol=1e-2, atol=1e-3), name


def test_a_model_that_has_replayed_is_saved_and_goes_on_elsewhere(tmp_path):
    model = make_model(device="cuda")
    model.learn(600)
    model.save(tmp_path / "model")
    model.learn(400, reset_num_timesteps=False)
    loaded = TDJEPA.load(tmp_path / "model", env=make_vec_env("Pendulum-v1"), device="cpu")
    loaded.learn(400, reset_num_timesteps=False)
    assert all(value.isfinite().all() for value in loaded.policy.state_dict().values())
