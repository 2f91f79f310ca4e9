import copy

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import preprocess_obs
from torch import nn

from sb3_jepa import DmtJepa, JepaExtractor, MaskedPrediction, Salt, SaltTeacher, TJepa
from sb3_jepa.common.observations import as_observations, by_key
from sb3_jepa.objectives import ObjectiveInput
from sb3_jepa.parts import NeighborAggregation
from sb3_jepa.parts.masks import Masks

SMALL = dict(embed_dim=8, num_heads=2, depth=1, standardize_frames=0)
# frames_as: the pixels of a token are then those of the image
PATCHES = dict(SMALL, patch_size=4, frames_as="channels")
VECTOR = spaces.Box(-3, 3, (5,))
CATEGORIES = spaces.MultiDiscrete([2, 4, 3, 2, 2])
IMAGE = spaces.Box(0, 255, (3, 16, 16), np.uint8)
MIXED = spaces.Dict(
    image=spaces.Box(0, 255, (1, 8, 8), np.uint8), mode=spaces.Discrete(3), speed=spaces.Box(-1, 1, (2,))
)
SPACES = dict(vector=VECTOR, categories=CATEGORIES, image=IMAGE, dict=MIXED)
# Two predictions of two hidden tokens each, with one in common
CONTEXT, TARGETS = [0, 2], [[1, 4], [3, 4]]


class FixedMasks:
    """The same masks for all samples."""

    def __init__(self, context=CONTEXT, targets=TARGETS):
        self.context, self.targets = th.tensor(context), th.tensor(targets)

    def sample(self, batch_size: int) -> Masks:
        return Masks(self.context.expand(batch_size, -1), self.targets.expand(batch_size, -1, -1))


def make(
    space: spaces.Space, objective_class: type[MaskedPrediction] = MaskedPrediction, **kwargs
) -> tuple[JepaExtractor, MaskedPrediction]:
    th.manual_seed(0)
    extractor_kwargs = kwargs.pop("extractor_kwargs", {})
    encoder = JepaExtractor(space, **{**PATCHES, **extractor_kwargs})
    objective = objective_class(
        encoder, encoder.features_dim, **{**dict(predictor_dim=16, predictor_depth=1), **kwargs}
    )
    objective.masks = [FixedMasks()]
    # What the target encoder was a copy of has learned since
    with th.no_grad():
        for parameter in encoder.parameters():
            parameter += 0.1 * th.randn_like(parameter)
    return encoder, objective


def sample(space: spaces.Space, n: int = 3) -> tuple[list, th.Tensor | dict[str, th.Tensor]]:
    """Observations one by one, and as encoders take them."""
    space.seed(0)
    samples = [space.sample() for _ in range(n)]
    keyed = [by_key(one) for one in samples]
    batch = as_observations({key: th.as_tensor(np.stack([one[key] for one in keyed])) for key in keyed[0]})
    return samples, preprocess_obs(batch, space)


def inputs_of(space: spaces.Space, observation) -> list[np.ndarray]:
    """What each token is made of, from the observation itself."""
    if isinstance(space, spaces.Dict):
        return [one for key in sorted(space) for one in inputs_of(space[key], observation[key])]
    if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
        sizes, values = np.atleast_1d(getattr(space, "nvec", getattr(space, "n", None))), np.atleast_1d(observation)
        return [np.eye(size)[value] for size, value in zip(sizes, values, strict=True)]
    if len(space.shape) == 3:
        side = range(0, space.shape[1], 4)
        return [observation[:, row : row + 4, column : column + 4].reshape(-1) / 255 for row in side for column in side]
    return [np.array([number]) for number in observation]


def error(name: str, difference: np.ndarray) -> np.ndarray:
    size = np.abs(difference)
    return dict(mse=size**2, l1=size, smooth_l1=np.where(size < 1, 0.5 * size**2, size - 0.5))[name]


def written_out(encoder, objective, observations, targets: list[list[np.ndarray]], masks=None, loss="mse") -> float:
    """The mean over all numbers that are predicted, one by one; of each sample, targets are those of all tokens."""
    masks = (masks or FixedMasks()).sample(len(targets))
    missing = None
    if encoder.encoder.missing_as_nan:
        missing = observations.isnan().gather(1, masks.context)
    with th.no_grad():
        context = encoder.encode_tokens(observations, masks.context)
        predicted = objective.predictor(context, *masks, missing).numpy()
    errors = []
    for number, of_sample in enumerate(targets):
        for mask, places in enumerate(masks.targets[number].tolist()):
            for index, place in enumerate(places):
                target = of_sample[place]
                errors += error(loss, predicted[number, mask, index, : len(target)] - target).tolist()
    return float(np.mean(errors))


def loss_of(encoder, objective, observations) -> th.Tensor:
    return objective(ObjectiveInput(encoder, observations)).loss


@pytest.mark.parametrize("loss", ["mse", "l1", "smooth_l1"])
@pytest.mark.parametrize("name", SPACES)
def test_what_tokens_are_made_of_as_targets(name, loss):
    space = SPACES[name]
    encoder, objective = make(space, target="input", prediction_loss=loss)
    samples, observations = sample(space)
    targets = [inputs_of(space, one) for one in samples]
    assert len(targets[0]) == encoder.encoder.n_tokens
    expected = written_out(encoder, objective, observations, targets, loss=loss)
    assert loss_of(encoder, objective, observations).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("class_tokens", [0, 1, 3])
@pytest.mark.parametrize("target", ["momentum", "frozen"])
def test_tokens_of_an_encoder_as_targets(target, class_tokens, normalize):
    kwargs: dict = dict(target=target, normalize_targets=normalize)
    if target == "frozen":
        # Of another width, and with another number of class tokens
        kwargs["teacher"] = JepaExtractor(VECTOR, **{**SMALL, "embed_dim": 12, "class_tokens": 2})
    extractor_kwargs = dict(class_tokens=class_tokens, output="mean")
    encoder, objective = make(VECTOR, extractor_kwargs=extractor_kwargs, **kwargs)
    _, observations = sample(VECTOR)
    source = kwargs["teacher"] if target == "frozen" else objective.target_encoder.encoder
    with th.no_grad():
        targets = source.encode_tokens(observations)[:, 2 if target == "frozen" else class_tokens :].double()
    if normalize:
        mean, variance = targets.mean(dim=2, keepdim=True), targets.var(dim=2, keepdim=True, correction=0)
        targets = (targets - mean) / (variance + 1e-5).sqrt()
    assert targets.shape == (3, 5, 12 if target == "frozen" else 8)
    expected = written_out(encoder, objective, observations, list(targets.numpy()))
    assert loss_of(encoder, objective, observations).item() == pytest.approx(expected, rel=1e-4)


def test_the_losses_of_several_masks_are_averaged():
    encoder, objective = make(VECTOR, target="input")
    samples, observations = sample(VECTOR)
    targets = [inputs_of(VECTOR, one) for one in samples]
    # Each counts the same, however many tokens it hides
    objective.masks = [FixedMasks(), FixedMasks([1], [[0, 2, 3, 4]])]
    losses = [written_out(encoder, objective, observations, targets, masks) for masks in objective.masks]
    assert losses[0] != pytest.approx(losses[1])
    assert loss_of(encoder, objective, observations).item() == pytest.approx(np.mean(losses), rel=1e-4)


class Scaling(nn.Module):
    """A target transform whose values can be written out."""

    def __init__(self, grid, embed_dim, factor=2.0):
        super().__init__()
        self.factor = nn.Parameter(th.full((embed_dim,), factor))

    def forward(self, latents):
        return latents * self.factor

    def transform_context(self, context, class_tokens):
        assert class_tokens == 1
        return context + self.factor


@pytest.mark.parametrize("normalize", [False, True])
def test_a_target_transform_and_its_momentum_copy(normalize):
    kwargs = dict(target_transform_class=Scaling, target_transform_kwargs=dict(factor=3.0), normalize_targets=normalize)
    # Without its own LayerNorm, which would begin with the same numbers
    encoder, objective = make(IMAGE, extractor_kwargs=dict(final_norm=False), **kwargs)
    _, observations = sample(IMAGE)
    with th.no_grad():
        objective.target_transform.factor += 1.0
        # Targets come from the copy, which has not moved yet
        targets = objective.target_encoder.encoder.encode_tokens(observations)[:, 1:]
        targets = 3.0 * (nn.functional.layer_norm(targets, (8,)) if normalize else targets)
        masks = FixedMasks().sample(3)
        context = encoder.encode_tokens(observations, masks.context) + 4.0
        predicted = objective.predictor(context, *masks)
        chosen = targets[:, th.tensor(TARGETS)]
    expected = (predicted - chosen).square().mean().item()
    loss = loss_of(encoder, objective, observations)
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    loss.backward()
    assert (objective.target_transform.factor.grad != 0).all()
    assert objective.target_transform_copy.encoder.factor.grad is None
    objective.momentum = 0.9
    objective.update_target(encoder)
    assert objective.target_transform_copy.encoder.factor.tolist() == pytest.approx([0.9 * 3.0 + 0.1 * 4.0] * 8)


OBJECTIVES = {
    "momentum": (VECTOR, MaskedPrediction, {}),
    "input": (MIXED, SaltTeacher, {}),
    "frozen": (VECTOR, Salt, dict(teacher=JepaExtractor(VECTOR, **SMALL))),
    "t-jepa": (CATEGORIES, TJepa, {}),
    "dmt-jepa": (IMAGE, DmtJepa, {}),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradients_flow_where_promised(name):
    space, objective_class, kwargs = OBJECTIVES[name]
    encoder, objective = make(space, objective_class, **kwargs)
    _, observations = sample(space)
    before = copy.deepcopy(objective.target_encoder.state_dict())
    loss_of(encoder, objective, observations).backward()
    trained = [encoder, objective.predictor, *([objective.target_transform] if objective.target_transform else [])]
    for module in trained:
        assert sum(parameter.grad.abs().sum() for parameter in module.parameters() if parameter.grad is not None) > 0
    is_trained = {id(parameter) for module in trained for parameter in module.parameters()}
    for parameter_name, parameter in objective.named_parameters():
        assert parameter.requires_grad == (id(parameter) in is_trained), parameter_name
        assert parameter.requires_grad or parameter.grad is None, parameter_name
    if name == "frozen":
        objective.momentum = 0.5
        objective.update_target(encoder)
        assert all(th.equal(value, before[key]) for key, value in objective.target_encoder.state_dict().items())


def test_the_context_encoder_does_not_see_what_is_hidden():
    encoder, objective = make(IMAGE)
    _, observations = sample(IMAGE)
    masks = FixedMasks().sample(3)

    def predict(changed_row: int) -> th.Tensor:
        # Patch 1 is hidden and 0 is seen; both begin in the first row of pixels
        changed = observations.clone()
        changed[:, :, 0, changed_row] = 1.0 - changed[:, :, 0, changed_row]
        with th.no_grad():
            return objective.predictor(encoder.encode_tokens(changed, masks.context), *masks)

    with th.no_grad():
        unchanged = objective.predictor(encoder.encode_tokens(observations, masks.context), *masks)
    assert th.equal(predict(5), unchanged)
    assert not th.allclose(predict(2), unchanged)


def test_class_tokens_are_always_seen_and_never_targets():
    encoder, objective = make(VECTOR, extractor_kwargs=dict(class_tokens=2))
    objective.masks = MaskedPrediction(encoder, 8, mask_kwargs=dict(n_masks=2)).masks
    _, observations = sample(VECTOR)
    seen = []
    objective.predictor.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    for _ in range(20):
        loss_of(encoder, objective, observations)
    assert len(seen) == 20
    assert all(context.shape[1] == 2 + places.shape[1] for context, places, *_ in seen)
    # Counted without class tokens, all the five numbers are hidden now and then
    assert {place for _, _, hidden, _ in seen for place in hidden.flatten().tolist()} == {0, 1, 2, 3, 4}
    with th.no_grad():
        encoder.encoder.class_token += 1.0
    assert objective.targets(ObjectiveInput(encoder, observations)).shape[1] == 5


@pytest.mark.parametrize("target", ["momentum", "input"])
def test_what_is_missing_is_neither_seen_nor_a_target(target):
    extractor_kwargs = dict(missing_as_nan=True)
    encoder, objective = make(VECTOR, target=target, extractor_kwargs=extractor_kwargs)
    _, observations = sample(VECTOR)
    # Of the first sample one that is hidden, in both masks, and of the second one that is seen
    observations[0, 4] = observations[1, 2] = th.nan
    with th.no_grad():
        targets = objective.targets(ObjectiveInput(encoder, observations)).double().numpy()
    expected_targets = [list(one) for one in targets]
    expected_targets[0][4] = np.zeros(0)
    expected = written_out(encoder, objective, observations, expected_targets)
    assert expected == pytest.approx(loss_of(encoder, objective, observations).item(), rel=1e-4)
    # Where all that is hidden is missing, nothing is learned, and nothing breaks
    observations[:, [1, 3, 4]] = th.nan
    loss = loss_of(encoder, objective, observations)
    loss.backward()
    assert loss.item() == 0.0
    assert all(parameter.grad.isfinite().all() for parameter in encoder.parameters() if parameter.grad is not None)


def test_a_prediction_does_not_depend_on_the_place_of_what_is_missing():
    encoder, objective = make(VECTOR, target="input", extractor_kwargs=dict(missing_as_nan=True))
    _, observations = sample(VECTOR)
    # Of what is seen, one is there; what was taken away is once the one and once the other
    observations[:, [2, 3]] = th.nan
    losses = []
    for context in ([0, 2], [0, 3]):
        objective.masks = [FixedMasks(context, [[1, 4]])]
        losses.append(loss_of(encoder, objective, observations).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    objective.masks = [FixedMasks([0, 2], [[1, 4]])]
    observations[:, 2] = 1.0
    assert loss_of(encoder, objective, observations).item() != pytest.approx(losses[0], rel=1e-6)


def test_the_heads_of_the_aggregation_are_an_option():
    wide = dict(extractor_kwargs=dict(embed_dim=6))
    with pytest.raises(ValueError, match=r"`target_transform_kwargs`, .*`num_heads` must divide .*num_heads=4"):
        make(IMAGE, DmtJepa, **wide)
    encoder, objective = make(IMAGE, DmtJepa, target_transform_kwargs=dict(num_heads=3), **wide)
    assert all(block.attention.num_heads == 3 for block in objective.target_transform.blocks)
    _, observations = sample(IMAGE)
    assert loss_of(encoder, objective, observations).isfinite()


def test_the_method_says_which_loss_can_be_compared():
    fixed = {name: make(space, cls, **kwargs)[1].has_fixed_target for name, (space, cls, kwargs) in OBJECTIVES.items()}
    assert fixed == {"momentum": False, "input": True, "frozen": True, "t-jepa": False, "dmt-jepa": False}


@pytest.mark.parametrize(
    ("space", "extractor_kwargs", "kwargs", "message"),
    [
        (VECTOR, {}, dict(target="future"), "`target` must be .*'future'"),
        (VECTOR, {}, dict(target="frozen"), "needs an encoder as `teacher`"),
        (VECTOR, {}, dict(teacher=JepaExtractor(VECTOR, **SMALL)), "no other target takes one"),
        (VECTOR, {}, dict(target="frozen", teacher="runs/teacher"), "`teacher` must be an instance of Module, or None"),
        (VECTOR, {}, dict(prediction_loss="l3"), "`prediction_loss` must be .*'l3'"),
        (VECTOR, {}, dict(target_transform_class=NeighborAggregation), "needs the patches of an image"),
        (IMAGE, {}, dict(target="input", target_transform_class=NeighborAggregation), "for the tokens of an encoder"),
        (VECTOR, {}, dict(target="input", normalize_targets=True), "are for the tokens of an encoder"),
        (IMAGE, {}, dict(target_transform_kwargs=dict(k=3)), r"need a `target_transform_class`, got \{'k': 3\} alone"),
        (
            IMAGE,
            {},
            dict(
                target="frozen",
                teacher=JepaExtractor(IMAGE, **{**PATCHES, "embed_dim": 4}),
                target_transform_class=NeighborAggregation,
            ),
            "has parameters.*needs `target=\"momentum\"`, got 'frozen'",
        ),
        (
            VECTOR,
            {},
            dict(target="frozen", teacher=JepaExtractor(spaces.Box(-1, 1, (4,)), **SMALL)),
            r"`teacher` must have the tokens of the encoder, \(5,\), got \(4,\)",
        ),
        (
            IMAGE,
            {},
            dict(target="frozen", teacher=JepaExtractor(IMAGE, **{**PATCHES, "patch_size": 8})),
            r"\(1, 4, 4\), got \(1, 2, 2\)",
        ),
        (
            IMAGE,
            {},
            dict(
                target="frozen",
                teacher=JepaExtractor(spaces.Box(0, 255, (3, 32, 32), np.uint8), **{**PATCHES, "patch_size": 8}),
            ),
            "same observations as the encoder.* 48 pixels.*, got 192",
        ),
        (
            VECTOR,
            dict(missing_as_nan=True),
            dict(target="frozen", teacher=JepaExtractor(VECTOR, **SMALL)),
            "`teacher` must have `missing_as_nan=True`",
        ),
        (IMAGE, dict(token_budget=4), {}, "no `token_budget`"),
        (IMAGE, dict(drop_constant_tokens=True, standardize_frames=8), {}, "no `drop_constant_tokens`"),
        (IMAGE, dict(patch_size=16), {}, "at least 2 tokens"),
        (spaces.Discrete(5), {}, {}, "at least 2 tokens"),
        (VECTOR, {}, dict(momentum=1.5), "`momentum` must be a finite number from 0 to 1"),
    ],
)
def test_bad_input(space, extractor_kwargs, kwargs, message):
    with pytest.raises(ValueError, match=message):
        make(space, extractor_kwargs=extractor_kwargs, **kwargs)


def test_an_encoder_without_tokens():
    with pytest.raises(ValueError, match=r"needs a sb3_jepa\.JepaExtractor, got Linear"):
        MaskedPrediction(nn.Linear(5, 4), 4)
