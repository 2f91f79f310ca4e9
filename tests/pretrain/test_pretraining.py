import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from torch import nn

from sb3_jepa import (
    PPO,
    JepaExtractor,
    MaskedPrediction,
    Objective,
    ObjectiveOutput,
    TJepa,
    pretrain,
    pretrain_salt,
    read_encoder,
    save_encoder,
)
from sb3_jepa.extractors.files import describe_encoder
from sb3_jepa.objectives import NextLatentPrediction
from sb3_jepa.pretrain.training import make_optimizer
from tests.conftest import SMALL_PPO, FakeEnv
from tests.pretrain.test_salt import SMALL_SALT
from tests.pretrain.test_training import (
    EXTRACTOR,
    IMAGE,
    SMALL,
    SPACE,
    Interrupted,
    assert_same,
    interrupt,
    make_images,
    make_recordings,
    state_of,
)

BEGINNING = {name: value for name, value in SMALL.items() if name != "features_extractor_kwargs"}


@pytest.fixture
def initial(tmp_path):
    """An encoder that a model has learned."""
    env = make_vec_env(lambda: FakeEnv(SPACE), n_envs=2, seed=0)
    policy_kwargs = dict(features_extractor_kwargs=EXTRACTOR, net_arch=[8])
    return save_encoder(
        PPO("JepaPolicy", env, policy_kwargs=policy_kwargs, **SMALL_PPO).learn(64), tmp_path / "initial"
    )


def test_a_pretraining_begins_with_parameters_and_statistics_of_another_encoder(initial, tmp_path):
    # Too small a rate to change any number
    pretrain(make_recordings(), tmp_path / "new", initial_encoder=initial, **{**BEGINNING, "learning_rate": 1e-300})
    assert_same(state_of(tmp_path / "new"), read_encoder(initial).state_dict())
    described, kwargs = describe_encoder(tmp_path / "new"), describe_encoder(initial)["features_extractor_kwargs"]
    assert described["settings"]["initial_encoder"] == describe_encoder(initial)["id"]
    assert described["features_extractor_kwargs"] == kwargs
    # ... and learns
    again = pretrain(make_recordings(), tmp_path / "again", initial_encoder=tmp_path / "new", **SMALL)
    assert not th.equal(read_encoder(again).encoder.class_token, read_encoder(initial).encoder.class_token)


def test_it_goes_on_after_an_interruption(initial, monkeypatch, tmp_path):
    arguments = dict(BEGINNING, source=make_recordings(), initial_encoder=initial)
    pretrain(folder=tmp_path / "whole", **arguments)
    with monkeypatch.context() as patch:
        interrupt(patch, 3)
        with pytest.raises(Interrupted):
            pretrain(folder=tmp_path / "interrupted", **arguments)
    pretrain(folder=tmp_path / "interrupted", **arguments)
    assert_same(state_of(tmp_path / "whole"), state_of(tmp_path / "interrupted"))
    # Another encoder is another beginning
    for other, its_id in ((None, "None"), (tmp_path / "whole", "[0-9a-f]{8}")):
        kwargs = dict(arguments, initial_encoder=other, features_extractor_kwargs=EXTRACTOR)
        with pytest.raises(
            ValueError, match=f"another pretraining.*initial_encoder is [0-9a-f]{{8}} there and {its_id}"
        ):
            pretrain(folder=tmp_path / "whole", **kwargs)


def test_salt_begins_its_second_stage_with_it(initial, tmp_path):
    arguments = {name: value for name, value in SMALL_SALT.items() if name != "features_extractor_kwargs"}
    pretrain_salt(
        make_recordings(), tmp_path / "salt", initial_encoder=initial, **{**arguments, "learning_rate": 1e-300}
    )
    assert_same(state_of(tmp_path / "salt"), read_encoder(initial).state_dict())
    assert describe_encoder(tmp_path / "salt" / "teacher")["settings"]["initial_encoder"] is None
    # The teacher is as large, and has learned by itself
    teacher = read_encoder(tmp_path / "salt" / "teacher")
    assert teacher.features_dim == EXTRACTOR["embed_dim"]
    assert not th.equal(teacher.encoder.class_token, read_encoder(initial).encoder.class_token)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            dict(features_extractor_kwargs=dict(embed_dim=16, depth=1)),
            r"`features_extractor_kwargs` must be those of `initial_encoder`, .*: embed_dim is 8 there and 16 here\Z",
        ),
        (dict(initial_encoder="nowhere"), "`initial_encoder` must be an encoder .* got nowhere"),
        (dict(source=make_images()), "`initial_encoder`, .*, does not fit the source: .* is missing in the model"),
    ],
)
def test_an_encoder_that_cannot_be_the_beginning(change, message, initial, tmp_path):
    for function in (pretrain, pretrain_salt):
        arguments = dict(BEGINNING if function is pretrain else SMALL_SALT, folder=tmp_path / "new")
        arguments.pop("features_extractor_kwargs", None)
        with pytest.raises(ValueError, match=message):
            function(**{**arguments, "source": make_recordings(), "initial_encoder": initial, **change})
    assert not list((tmp_path / "new").glob("*.pth"))


class Reconstruction(Objective):
    """An objective of users: the target's embedding from that of noisy observations."""

    def __init__(self, encoder, embed_dim, action_dim, **kwargs):
        super().__init__(encoder, embed_dim, action_dim, **kwargs)
        self.predictor = nn.Linear(embed_dim, embed_dim)

    def forward(self, batch):
        noisy = batch.observations + 0.1 * th.randn_like(batch.observations)
        loss = nn.functional.mse_loss(self.predictor(batch.encoder(noisy)), self.target_encoder(batch.observations))
        return ObjectiveOutput(loss, {"prediction_loss": loss.detach()}, None, None, None)


def test_only_masked_prediction_could_be_pretrained(tmp_path):
    pretrain(make_recordings(), tmp_path, **{**SMALL, "objective_class": Reconstruction, "objective_kwargs": {}})
    # Its targets move: the probe decides, and the momentum copy is what is kept
    assert describe_encoder(tmp_path)["criterion"] == "probe_r2"
    checkpoint = th.load(tmp_path / "checkpoint.pth", weights_only=True)
    assert checkpoint["objective"]["predictor.weight"].isfinite().all()


@pytest.mark.parametrize(
    ("needs", "named"), [(dict(horizon=3), "3 steps ahead"), (dict(needs_rewards=True), "rewards")]
)
def test_an_objective_of_more_than_single_steps_is_refused(needs, named, tmp_path):
    own = type("Own", (MaskedPrediction,), needs)
    with pytest.raises(
        ValueError, match=rf"`objective_class` must learn from single .*, got Own, which needs {named}:"
    ):
        pretrain(make_recordings(), tmp_path, own)
    assert not list(tmp_path.iterdir())


def test_an_objective_of_actions_needs_recordings_that_have_some(tmp_path):
    with pytest.raises(ValueError, match="`source` must have actions for `objective_class=NextLatentPrediction`"):
        pretrain(make_recordings(), tmp_path, NextLatentPrediction)
    assert not list(tmp_path.iterdir())


def test_what_objectives_say_of_themselves():
    encoder = JepaExtractor(SPACE, **EXTRACTOR)
    objectives = {
        "next": NextLatentPrediction(encoder, 8, 2),
        "momentum": TJepa(encoder, 8),
        "input": MaskedPrediction(encoder, 8, target="input"),
        "frozen": MaskedPrediction(encoder, 8, target="frozen", teacher=encoder),
    }
    moves = {name: objective.has_momentum_target for name, objective in objectives.items()}
    assert moves == dict(next=True, momentum=True, input=False, frozen=False)
    assert all(objective.has_fixed_target != moves[name] for name, objective in objectives.items())


@pytest.mark.parametrize(
    "space",
    [
        spaces.Dict(image=IMAGE, vector=spaces.Box(-1, 1, (70,)), many=spaces.MultiDiscrete([3] * 70)),
        spaces.Box(0, 255, (6, 16, 16), "uint8"),
    ],
)
def test_weight_decay_shrank_codes_and_norms(space):
    kwargs = dict(embed_dim=8, num_heads=2, frames_as="tokens", output="per_token")
    encoder = JepaExtractor(space, **kwargs)
    objective = MaskedPrediction(encoder, encoder.features_dim)
    optimizer, _ = make_optimizer(encoder, objective, learning_rate=0.1, weight_decay=0.1)
    modules = nn.ModuleDict(dict(encoder=encoder, predictor=objective.predictor))
    for parameter in modules.parameters():
        parameter.data.fill_(1.0)
        # Without a gradient, nothing but the decay is left of a step
        parameter.grad = th.zeros_like(parameter)
    optimizer.step()
    shrunk = {name for name, parameter in modules.named_parameters() if (parameter < 1.0).all()}
    same = {name for name, parameter in modules.named_parameters() if (parameter == 1.0).all()}
    assert shrunk | same == dict(modules.named_parameters()).keys()
    weights = {f"{name}.weight" for name, module in modules.named_modules() if isinstance(module, nn.Linear)}
    assert weights <= shrunk
    # Numbers and categories have linear maps too, and so has the readout
    others = {name.rpartition(".")[2] for name in shrunk - weights}
    assert others <= {"direction", "embedding", "weight"}
    assert not [name for name in shrunk if "norm" in name]
