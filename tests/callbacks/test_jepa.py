import warnings

import numpy as np
import pytest
import stable_baselines3
import torch as th
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.logger import configure
from stable_baselines3.common.utils import LinearSchedule
from tensorboard.backend.event_processing.event_accumulator import TENSORS, EventAccumulator

from sb3_jepa import A2C, PPO, JepaCallback, JepaExtractor, JepaPolicy, JepaRolloutBuffer
from sb3_jepa.callbacks.update_log import UpdateLogCallback
from sb3_jepa.diagnostics import ObjectiveGauge, effective_rank
from tests.conftest import SMALL_POLICY, SMALL_PPO, make_counting_env

SCALARS = {
    "jepa/prediction_loss",
    "jepa/variance_loss",
    "jepa/embedding_variance",
    "jepa/effective_rank",
    "jepa/momentum",
    "jepa/smallest_deviation",
    "jepa/largest_deviation",
    "jepa/deviation_loss",
    "jepa/covariance_loss",
    "jepa/prediction_to_copy_ratio",
    "jepa/target_cosine",
    "jepa/rl_gradient_norm",
    "jepa/jepa_gradient_norm",
    "jepa/gradient_cosine",
}


class CountSteps(BaseCallback):
    """What any other callback sees of the training."""

    def __init__(self):
        super().__init__()
        self.n_trained, self.observations = [], []

    def _on_step(self) -> bool:
        self.n_trained.append(self.model._n_updates)
        self.observations.append(self.model._last_obs.copy())
        return True


def test_scalars_reach_tensorboard_after_each_update(pixel_cartpole, tmp_path):
    model = PPO(JepaPolicy, pixel_cartpole, policy_kwargs=SMALL_POLICY, tensorboard_log=str(tmp_path), **SMALL_PPO)
    model.learn(3 * 32)
    events = EventAccumulator(str(tmp_path / "PPO_1")).Reload()
    assert set(events.Tags()["scalars"]) >= SCALARS
    for name in SCALARS:
        # One point for each of the three updates, where the rollout after it ends; the last one included
        assert [event.step for event in events.Scalars(name)] == [64, 96, 128], name
    assert all(event.value == pytest.approx(0.99) for event in events.Scalars("jepa/momentum"))
    assert all(event.value > 0 for event in events.Scalars("jepa/prediction_loss"))
    assert all(event.value > 0 for event in events.Scalars("jepa/embedding_variance"))
    assert all(-1 <= event.value < 0 for event in events.Scalars("jepa/variance_loss"))
    assert all(1 <= event.value <= 16 for event in events.Scalars("jepa/effective_rank"))


@pytest.mark.parametrize("callback", [None, [], CountSteps(), lambda *_: True])
def test_ppo_adds_one_by_itself(pixel_cartpole, callback, tmp_path):
    model = PPO(JepaPolicy, pixel_cartpole, policy_kwargs=SMALL_POLICY, **SMALL_PPO)
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(64, callback=callback)
    assert set((tmp_path / "progress.csv").read_text().splitlines()[0].split(",")) >= SCALARS


@pytest.mark.parametrize("nest", [lambda mine: mine, lambda mine: [CountSteps(), CallbackList([mine])]])
def test_the_users_own_takes_its_place(pixel_cartpole, nest):
    class Mine(JepaCallback):
        n_logged = 0

        def _on_rollout_start(self) -> None:
            self.n_logged += bool(self.gauges["shared"].means())
            super()._on_rollout_start()

        def _on_training_end(self) -> None:
            self.n_logged += bool(self.gauges["shared"].means())
            super()._on_training_end()

    mine = Mine()
    model = PPO(JepaPolicy, pixel_cartpole, policy_kwargs=SMALL_POLICY, **SMALL_PPO)
    model.learn(64, callback=nest(mine))
    # A second callback beside it would have taken half of them away
    assert mine.n_logged == 2


def test_inputs_are_measured_before_anything_is_learned():
    counter = CountSteps()
    env = make_counting_env()
    model = PPO(JepaPolicy, env, policy_kwargs=SMALL_POLICY, **{**SMALL_PPO, "n_steps": 4, "batch_size": 12})
    born = {name: p.clone() for name, p in model.policy.named_parameters()}
    (standardization,) = model.policy.features_extractor.standardizations
    n_seen_before_update, train = [], model.train

    def note_then_train():
        n_seen_before_update.append(int(standardization.n_seen))
        train()

    model.train = note_then_train
    model.learn(4 * 12, callback=counter)
    # 32 frames wanted, from rollouts of 3 environments and 4 steps
    assert n_seen_before_update == [12, 24, 36, 36]
    assert model.policy.features_extractor.n_inputs_to_measure == 0
    # Every step is learned from, in 2 epochs
    assert model.num_timesteps == 4 * 12
    assert counter.n_trained == [0] * 4 + [2] * 4 + [4] * 4 + [6] * 4
    # The mean of what was seen, for context and target encoder alike
    measured = np.concatenate(counter.observations[:12]) / 255.0
    oldest, middle, newest = measured.mean(axis=0)
    expected = np.stack((newest, middle - oldest, newest - middle))
    assert np.allclose(standardization.mean.numpy(), expected, atol=1e-6)
    (target,) = model.policy.objective.target_encoder.encoder.standardizations
    for name, value in standardization.state_dict().items():
        assert th.equal(value, target.state_dict()[name]), name
    assert any(not th.equal(p, born[name]) for name, p in model.policy.named_parameters())


def test_statistics_are_frozen_once_measured(pixel_cartpole):
    model = PPO(JepaPolicy, pixel_cartpole, policy_kwargs=SMALL_POLICY, **SMALL_PPO).learn(64)
    (standardization,) = model.policy.features_extractor.standardizations
    before = {name: value.clone() for name, value in standardization.state_dict().items()}
    model.learn(64, reset_num_timesteps=False)
    for name, value in standardization.state_dict().items():
        assert th.equal(value, before[name]), name


def test_old_and_new_log_probabilities_come_from_one_function(pixel_cartpole):
    # ... or the first ratio would not be one
    model = PPO(JepaPolicy, pixel_cartpole, policy_kwargs=SMALL_POLICY, **SMALL_PPO)
    ratios = []
    train = model.train

    def check_then_train():
        buffer = model.rollout_buffer
        with th.no_grad():
            for step in range(buffer.buffer_size):
                observations, actions = th.as_tensor(buffer.observations[step]), th.as_tensor(buffer.actions[step])
                _, log_prob, _ = model.policy.evaluate_actions(observations, actions.flatten())
                ratios.append((log_prob - th.as_tensor(buffer.log_probs[step])).exp())
        train()

    model.train = check_then_train
    model.learn(3 * 32)
    assert len(ratios) == 3 * 16
    assert th.allclose(th.stack(ratios), th.ones(()), atol=1e-5)


def test_scalars_are_means_over_one_update(pixel_cartpole, tmp_path):
    model = PPO(JepaPolicy, pixel_cartpole, policy_kwargs=SMALL_POLICY, **SMALL_PPO)
    model.set_logger(configure(str(tmp_path), ["tensorboard"]))
    forward, losses, embeddings = model.policy.objective.forward, [], []

    def spy(batch):
        output = forward(batch)
        embeddings.append(batch.embedding.detach())
        losses.append(output.terms["prediction_loss"].item())
        return output

    model.policy.objective.forward = spy
    model.learn(3 * 32)
    events = EventAccumulator(str(tmp_path)).Reload()
    # 2 epochs of 2 minibatches are an update
    means = np.mean(np.reshape(losses, (3, 4)), axis=1)
    assert [event.value for event in events.Scalars("jepa/prediction_loss")] == pytest.approx(means.tolist())
    ranks = [float(effective_rank(th.cat(embeddings[update : update + 4]))) for update in (0, 4, 8)]
    assert [event.value for event in events.Scalars("jepa/effective_rank")] == pytest.approx(ranks)


def test_standardisation_can_be_switched_off(pixel_cartpole, recwarn):
    kwargs = dict(SMALL_POLICY, features_extractor_kwargs=dict(standardize_frames=0, embed_dim=16))
    model = PPO(JepaPolicy, pixel_cartpole, policy_kwargs=kwargs, **SMALL_PPO).learn(32)
    assert model.num_timesteps == 32
    assert not [warning for warning in recwarn if "standardised" in str(warning.message)]


def test_momentum_follows_the_progress(pixel_cartpole, tmp_path):
    objective_kwargs = dict(momentum=LinearSchedule(0.9, 1.0, 1.0))
    kwargs = dict(SMALL_POLICY, objective_kwargs=objective_kwargs)
    model = PPO(JepaPolicy, pixel_cartpole, policy_kwargs=kwargs, **SMALL_PPO)
    model.set_logger(configure(str(tmp_path), ["tensorboard"]))
    model.learn(4 * 32)
    # A second training begins anew
    model.learn(64)
    momenta = [event.value for event in EventAccumulator(str(tmp_path)).Reload().Scalars("jepa/momentum")]
    # Each update uses the progress at the start of its rollout
    assert momenta == pytest.approx([0.9, 0.925, 0.95, 0.975, 0.9, 0.95])


def shrink_embedding(policy: JepaPolicy, factor: float) -> None:
    """The final LayerNorm's output and with it the embedding, in the context and the target encoder."""
    for extractor in (policy.features_extractor, policy.objective.target_encoder.encoder):
        extractor.encoder.norm.weight.data.mul_(factor)


def test_collapse_is_told_once_and_with_the_cure(pixel_cartpole):
    model = PPO(JepaPolicy, pixel_cartpole, policy_kwargs=SMALL_POLICY, **SMALL_PPO)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.learn(96)
    # A later learn() has a callback of its own, and still knows how the encoder began
    shrink_embedding(model.policy, 0.01)
    with pytest.warns(UserWarning, match=r"collapsed.*began with.*deviation_coef"):
        model.learn(64, reset_num_timesteps=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.learn(64, reset_num_timesteps=False)


def texts_of(folder) -> list[tuple[int, str]]:
    """Each verdict and when it was given."""
    events = EventAccumulator(str(folder), size_guidance={TENSORS: 0}).Reload()
    name = "jepa/verdict/text_summary"
    if name not in events.Tags()["tensors"]:
        return []
    return [(event.step, event.tensor_proto.string_val[0].decode()) for event in events.Tensors(name)]


def test_the_verdict_is_told_when_it_changes_and_never_to_tables(pixel_cartpole, tmp_path, capsys):
    model = PPO(JepaPolicy, pixel_cartpole, policy_kwargs=SMALL_POLICY, **SMALL_PPO)
    model.set_logger(configure(str(tmp_path), ["stdout", "log", "csv", "json", "tensorboard"]))

    class Shrink(BaseCallback):
        """Once, between two rollouts."""

        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            if self.num_timesteps == 3 * 32:
                shrink_embedding(self.model.policy, 0.01)

    with pytest.warns(UserWarning, match="collapsed"):
        model.learn(5 * 32, callback=Shrink())
    (first, healthy), (then, collapsed) = texts_of(tmp_path)
    # With the scalars of the first update, and with those of the first that began with a collapsed encoder
    assert (first, then) == (64, 128)
    assert healthy.startswith("**healthy**: its embedding variance is ")
    assert "Cure" not in healthy
    assert collapsed.startswith("**collapsed**: its embedding variance is ")
    assert "began with" in collapsed
    assert "Cure: a hinge on the deviation" in collapsed
    tables = [capsys.readouterr().out, *((tmp_path / name).read_text() for name in ("log.txt", "progress.csv"))]
    tables.append((tmp_path / "progress.json").read_text())
    for table in tables:
        assert "embedding_variance" in table
        assert "jepa/verdict" not in table
        assert "  verdict" not in table
        assert "Cure" not in table


def test_a_training_that_goes_on_begins_with_a_verdict(pixel_cartpole, tmp_path):
    model = PPO(JepaPolicy, pixel_cartpole, policy_kwargs=SMALL_POLICY, **SMALL_PPO)
    model.set_logger(configure(str(tmp_path), ["tensorboard"]))
    model.learn(64)
    model.learn(64, reset_num_timesteps=False)
    assert [(step, text.split(":")[0]) for step, text in texts_of(tmp_path)] == [
        (64, "**healthy**"),
        (128, "**healthy**"),
    ]


def flatten_embedding(policy: JepaPolicy) -> None:
    """Let the embedding vary in two dimensions only, whose mean is zero, and keep it so."""
    for extractor in (policy.features_extractor, policy.objective.target_encoder.encoder):
        norm = extractor.encoder.norm
        norm.weight.data[2:] = 0.0
        norm.bias.data.zero_()
        # Each has a length, and without a gradient it stays as it is
        norm.weight.data[0] = 0.1
        norm.requires_grad_(False)


def test_a_low_rank_is_told_once_if_it_stays(pixel_cartpole, tmp_path):
    model = PPO(JepaPolicy, pixel_cartpole, policy_kwargs=SMALL_POLICY, **SMALL_PPO)
    model.set_logger(configure(str(tmp_path), ["tensorboard"]))
    flatten_embedding(model.policy)
    # Four updates may be those of a beginning
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.learn(4 * 32)
    assert [text.split(":")[0] for _, text in texts_of(tmp_path)] == ["**low rank**"]
    # The count begins anew with a training
    with pytest.warns(
        UserWarning, match=r"few dimensions: .*effective rank is 1\.\d of 16.*covariance_coef=0.05"
    ) as told:
        model.learn(5 * 32, reset_num_timesteps=False)
    assert len(told) == 1
    assert model.policy.gauges["shared"].warned_of_low_rank
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.learn(6 * 32, reset_num_timesteps=False)


@pytest.mark.parametrize(("algorithm", "log_interval"), [(PPO, 3), (A2C, 100), (PPO, 1)])
def test_every_row_of_a_table_has_the_scalars(algorithm, log_interval, tmp_path):
    kwargs = dict(features_extractor_kwargs=dict(embed_dim=16, standardize_frames=10), net_arch=[16])
    n_steps = 64 if algorithm is PPO else 8
    settings = dict(batch_size=64, n_epochs=1) if algorithm is PPO else {}
    model = algorithm(
        "JepaPolicy", "CartPole-v1", n_steps=n_steps, policy_kwargs=kwargs, seed=0, device="cpu", **settings
    )
    model.set_logger(configure(str(tmp_path), ["csv"]))
    n_rollouts = 2 * log_interval + 1
    model.learn(n_rollouts * n_steps, log_interval=log_interval)
    lines = [line.split(",") for line in (tmp_path / "progress.csv").read_text().splitlines()]
    steps, variances = (lines[0].index(name) for name in ("time/total_timesteps", "jepa/embedding_variance"))
    rows = [(int(line[steps]), line[variances] != "") for line in lines[1:]]
    # The update after a rollout is shown in the row of the next one that has a row; at first there was none
    due = [n_steps * log_interval * number for number in range(1, n_rollouts // log_interval + 1)]
    expected = [(step, step > n_steps) for step in due]
    assert rows == [*expected, ((n_rollouts + 1) * n_steps, True)]


def test_the_training_is_the_same_without_gauges(pixel_cartpole, monkeypatch):
    def train() -> list[th.Tensor]:
        env = make_counting_env()
        model = PPO(JepaPolicy, env, policy_kwargs=SMALL_POLICY, **{**SMALL_PPO, "batch_size": 24}).learn(96)
        return [parameter.detach().clone() for parameter in model.policy.parameters()]

    watched = train()
    # To the last bit: a hook must not change the order in which gradients are added
    monkeypatch.setattr(ObjectiveGauge, "watch_gradient", lambda self, source, embedding: embedding)
    for hook in ("_on_rollout_start", "_on_training_end"):
        monkeypatch.setattr(UpdateLogCallback, hook, lambda self: None)
    assert all(th.equal(one, other) for one, other in zip(watched, train(), strict=True))


def test_the_cure_of_alternating_training_is_another(tmp_path):
    env = make_counting_env()
    kwargs = dict(SMALL_POLICY, features_extractor_class=JepaExtractor)
    model = stable_baselines3.PPO("CnnPolicy", env, policy_kwargs=kwargs, **SMALL_PPO)
    model.set_logger(configure(str(tmp_path), ["tensorboard"]))
    model.learn(96, callback=JepaCallback())
    model.policy.features_extractor.encoder.norm.weight.data.mul_(0.01)
    with pytest.warns(UserWarning, match=r"collapsed.*as arguments of JepaCallback"):
        model.learn(96, callback=JepaCallback(), reset_num_timesteps=False)
    assert [text.split(":")[0] for _, text in texts_of(tmp_path)][-1] == "**collapsed**"


def test_the_first_variance_is_that_of_the_untrained_encoder(pixel_cartpole):
    class Remember(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            observations = self.model.rollout_buffer.to_torch(self.model.rollout_buffer.observations).flatten(0, 1)
            with th.no_grad():
                embedding = self.model.policy.extract_features(observations)
            if not self.model._n_updates:
                self.variance = embedding.var(dim=0, correction=0).mean()

    remember = Remember()
    model = PPO(JepaPolicy, pixel_cartpole, policy_kwargs=SMALL_POLICY, **{**SMALL_PPO, "batch_size": 32})
    model.learn(128, callback=remember)
    assert model._n_updates > 2
    assert th.allclose(model.policy.gauges["shared"].first_embedding_variance, remember.variance, rtol=1e-3)


def test_a_loaded_run_knows_how_the_encoder_began(pixel_cartpole, tmp_path):
    model = PPO(JepaPolicy, pixel_cartpole, policy_kwargs=SMALL_POLICY, **SMALL_PPO).learn(96)
    model.save(tmp_path / "model")
    loaded = PPO.load(tmp_path / "model", env=pixel_cartpole)
    shrink_embedding(loaded.policy, 0.01)
    with pytest.warns(
        UserWarning, match=f"began with {float(model.policy.gauges['shared'].first_embedding_variance):.1e}"
    ):
        loaded.learn(64, reset_num_timesteps=False)


def test_arguments_of_alternating_training_are_refused_in_joint_training(pixel_cartpole):
    model = PPO(JepaPolicy, pixel_cartpole, policy_kwargs=SMALL_POLICY, **SMALL_PPO)
    with pytest.raises(ValueError, match=r"policy_kwargs.*`n_updates`, `learning_rate`"):
        model.learn(64, callback=JepaCallback(n_updates=2, learning_rate=1e-3))


def test_needs_an_encoder(pixel_cartpole):
    model = stable_baselines3.PPO("MlpPolicy", "CartPole-v1", n_steps=16, batch_size=16)
    with pytest.raises(ValueError, match=r"ActorCriticPolicy has no encoder that learns.*JepaExtractor"):
        model.learn(16, callback=JepaCallback())
    assert model.num_timesteps == 0


def test_without_the_callback_the_missing_standardisation_is_told(pixel_cartpole):
    model = stable_baselines3.PPO(
        JepaPolicy, pixel_cartpole, rollout_buffer_class=JepaRolloutBuffer, policy_kwargs=SMALL_POLICY, **SMALL_PPO
    )
    with pytest.warns(UserWarning, match=r"not standardised.*JepaCallback"):
        model.learn(64)
