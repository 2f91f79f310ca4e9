"""What becomes of an encoder's tokens: the features of a policy."""

import copy

import pytest
import stable_baselines3
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env

from sb3_jepa import PPO, JepaCallback, JepaExtractor, load_encoder, save_encoder
from tests.conftest import SMALL_EXTRACTOR, SMALL_POLICY, SMALL_PPO

VECTOR = spaces.Box(-1, 1, (4,))
OUTPUTS = ("class_token", "mean", "per_token", "flat")


def extractor_kwargs(**kwargs) -> dict:
    return dict(SMALL_EXTRACTOR, **kwargs)


def make_ppo(**kwargs) -> PPO:
    policy_kwargs = dict(SMALL_POLICY, features_extractor_kwargs=extractor_kwargs(**kwargs))
    return PPO("JepaPolicy", make_vec_env("CartPole-v1", n_envs=2, seed=0), policy_kwargs=policy_kwargs, **SMALL_PPO)


def assert_changed(encoder: JepaExtractor, before: dict[str, th.Tensor]) -> None:
    for name, parameter in encoder.named_parameters():
        # Where there is no class token, there is nothing to change
        assert parameter.numel() == 0 or not th.equal(parameter, before[name]), name


def expected_features(extractor: JepaExtractor, vectors: th.Tensor) -> th.Tensor:
    """Attention, blocks and outputs, written out."""
    encoder, n = extractor.encoder, extractor.encoder.class_tokens
    columns = encoder.tokenizer[-1]
    tokens = th.stack([columns.code[i] + vectors[:, i, None] * columns.direction[i] for i in range(4)], dim=1)
    tokens = th.cat([*(encoder.class_token[:, i : i + 1].expand(len(vectors), 1, 16) for i in range(n)), tokens], dim=1)
    for block in encoder.blocks:
        query, key, value = block.attention.qkv(block.attention_norm(tokens)).chunk(3, dim=2)
        heads = []
        for q, k, v in zip(query.chunk(2, dim=2), key.chunk(2, dim=2), value.chunk(2, dim=2), strict=True):
            heads.append((q @ k.transpose(1, 2) / 8**0.5).softmax(dim=2) @ v)
        tokens = tokens + block.attention.proj(th.cat(heads, dim=2))
        tokens = tokens + block.mlp(block.mlp_norm(tokens))
    tokens = encoder.norm(tokens)
    if encoder.output == "class_token":
        return tokens[:, 0]
    if encoder.output == "mean":
        return sum(tokens[:, n + i] for i in range(4)) / 4
    if encoder.output == "flat":
        return th.cat([tokens[:, i] for i in range(n + 4)], dim=1)
    weight, bias = encoder.readout.weight, encoder.readout.bias
    return th.stack([tokens[:, i] @ weight[i] + bias[i] for i in range(n + 4)], dim=1)


@pytest.mark.parametrize("class_tokens", [0, 1, 3])
@pytest.mark.parametrize("output", OUTPUTS)
def test_features_are_what_the_output_says(output, class_tokens):
    th.manual_seed(0)
    kwargs = dict(embed_dim=16, num_heads=2, standardize_frames=0, output=output, class_tokens=class_tokens)
    if output == "class_token" and class_tokens == 0:
        with pytest.raises(ValueError, match=r"class_tokens.*at least 1.*got 0"):
            JepaExtractor(VECTOR, **kwargs)
        return
    extractor = JepaExtractor(VECTOR, **kwargs)
    vectors = th.randn(7, 4)
    features = extractor(vectors)
    n_tokens = class_tokens + 4
    widths = dict(class_token=16, mean=16, per_token=n_tokens, flat=16 * n_tokens)
    assert features.shape == (7, extractor.features_dim) == (7, widths[output])
    assert th.allclose(features, expected_features(extractor, vectors), atol=1e-5)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [(dict(output="cls"), r"output.*class_token.*flat.*'cls'"), (dict(output="mean", class_tokens=-1), "at least 0")],
)
def test_bad_input(kwargs, message):
    with pytest.raises(ValueError, match=message):
        JepaExtractor(VECTOR, **kwargs)


@pytest.mark.parametrize(("output", "class_tokens"), [("mean", 0), ("per_token", 1), ("flat", 3)])
def test_policies_learn_from_each(output, class_tokens, tmp_path):
    model = make_ppo(output=output, class_tokens=class_tokens)
    before = {name: one.detach().clone() for name, one in model.policy.features_extractor.named_parameters()}
    model.learn(64)
    assert_changed(model.policy.features_extractor, before)
    model.save(tmp_path / "model")
    vectors = th.randn(5, 4)
    assert th.equal(PPO.load(tmp_path / "model").policy.predict_values(vectors), model.policy.predict_values(vectors))


@pytest.mark.parametrize(("output", "class_tokens"), [("class_token", 3), ("mean", 0), ("per_token", 1), ("flat", 1)])
def test_dqn_learns_from_each(output, class_tokens):
    policy_kwargs = dict(
        features_extractor_class=JepaExtractor,
        features_extractor_kwargs=extractor_kwargs(output=output, class_tokens=class_tokens),
        net_arch=[16],
    )
    model = stable_baselines3.DQN(
        "MlpPolicy", "CartPole-v1", policy_kwargs=policy_kwargs, learning_starts=32, batch_size=16, seed=0, device="cpu"
    )
    encoder = model.q_net.features_extractor
    before = {name: one.detach().clone() for name, one in encoder.named_parameters()}
    model.learn(80, callback=JepaCallback())
    assert_changed(encoder, before)


def test_a_readout_stays_with_who_uses_it(tmp_path):
    source = make_ppo(output="class_token").learn(64)
    path = save_encoder(source, tmp_path / "encoder.pth")
    model = make_ppo(output="per_token")
    own = {name: one.clone() for name, one in model.policy.features_extractor.encoder.readout.state_dict().items()}
    load_encoder(model, path, freeze=True)
    encoder, target = model.policy.features_extractor, model.policy.objective.target_encoder.encoder
    state = encoder.state_dict()
    for name, value in source.policy.features_extractor.state_dict().items():
        assert th.equal(state[name], value), name
    for name, value in own.items():
        assert th.equal(encoder.encoder.readout.state_dict()[name], value)
        assert th.equal(target.encoder.readout.state_dict()[name], value)
    # It learns to read a frozen encoder, and a model that was saved and loaded goes on with that
    model.save(tmp_path / "model")
    for learner in (model, PPO.load(tmp_path / "model", make_vec_env("CartPole-v1", n_envs=2))):
        encoder = learner.policy.features_extractor
        before = copy.deepcopy(encoder.state_dict())
        learner.learn(64)
        assert encoder.is_frozen
        for name, value in encoder.state_dict().items():
            assert th.equal(value, before[name]) != name.startswith("encoder.readout."), name
    # The other way round it is not needed, and left behind
    path = save_encoder(model, tmp_path / "with_readout.pth")
    load_encoder(source, path)
    source.learn(32)
    # Another number of class tokens is another encoder
    with pytest.raises(ValueError, match=r"class_token is \(1, 1, 16\) in the file and \(1, 3, 16\)"):
        load_encoder(make_ppo(output="per_token", class_tokens=3), path)
