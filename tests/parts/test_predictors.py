import math

import pytest
import torch as th
from torch import nn

from sb3_jepa.parts import ActionConditionedPredictor, MaskedPredictor, position_code


def test_predictor_adds_the_action_after_the_first_layer():
    predictor = ActionConditionedPredictor(embed_dim=4, action_dim=2, hidden_dim=8)
    embedding, action = th.randn(3, 4), th.eye(2)[[0, 1, 1]]
    hidden = embedding @ predictor.hidden.weight.T + predictor.hidden.bias + predictor.action.weight.T[[0, 1, 1]]
    expected = hidden.clamp(min=0) @ predictor.output.weight.T + predictor.output.bias
    assert th.allclose(predictor(embedding, action), expected, atol=1e-6)
    with pytest.raises(ValueError, match="hidden_dim"):
        ActionConditionedPredictor(4, 2, hidden_dim=0)


def test_predictor_begins_with_the_gain_it_was_given():
    predictor = ActionConditionedPredictor(embed_dim=4, action_dim=2, hidden_dim=8, init_gain=2.0)
    assert th.allclose(predictor.hidden.weight.T @ predictor.hidden.weight, 4 * th.eye(4), atol=1e-5)
    assert th.allclose(predictor.output.weight @ predictor.output.weight.T, 4 * th.eye(4), atol=1e-5)
    with pytest.raises(ValueError, match="init_gain"):
        ActionConditionedPredictor(4, 2, init_gain=0.0)


@pytest.mark.parametrize("grid", [(7,), (4, 6), (3, 4, 5), (1, 1, 4), (2, 2)], ids=str)
def test_no_two_places_have_one_code(grid):
    for dim in (2 * len(grid), 2 * len(grid) + 1, 33):
        code = position_code(grid, dim)
        assert code.shape == (math.prod(grid), dim)
        assert (th.cdist(code, code) + th.eye(len(code)) > 0.1).all()


def test_position_code_is_sines_and_cosines_for_each_axis():
    # Of 11 numbers, 4 for each axis, with frequencies 1 and 1 / 100; zeros are left. Place 15: row 2, column 3
    code = position_code((4, 6), 11)[15]
    expected = [f(position * frequency) for position in (2, 3) for f in (math.sin, math.cos) for frequency in (1, 0.01)]
    assert code.tolist() == pytest.approx([*expected, 0, 0, 0], abs=1e-6)
    for arguments, name in ((((4, 6), 3), "dim"), (((4, 0), 8), "grid"), (((), 8), "grid")):
        with pytest.raises(ValueError, match=f"`{name}`"):
            position_code(*arguments)


def make_masked_predictor(**kwargs) -> MaskedPredictor:
    th.manual_seed(0)
    return MaskedPredictor((4, 6), 16, predictor_dim=12, **kwargs)


CONTEXT_PLACES = th.tensor([[0, 7, 11, 23], [1, 2, 3, 12]])
TARGET_PLACES = th.tensor([[[4, 5], [5, 20], [8, 9]], [[0, 4], [13, 14], [22, 23]]])


@pytest.mark.parametrize("n_class_tokens", [0, 2])
@pytest.mark.parametrize("output_dim", [None, 5])
def test_masked_predictor_matches_a_loop_over_masks_and_samples(n_class_tokens, output_dim):
    predictor = make_masked_predictor(output_dim=output_dim)
    context = th.randn(2, n_class_tokens + 4, 16)
    predicted = predictor(context, CONTEXT_PLACES, TARGET_PLACES)
    assert predicted.shape == (2, 3, 2, output_dim or 16)
    code = position_code((4, 6), 12)
    for sample in range(2):
        # Class tokens come first and have no place
        seen = predictor.input(context[sample])
        seen = th.cat((seen[:n_class_tokens], seen[n_class_tokens:] + code[CONTEXT_PLACES[sample]]))
        for mask in range(3):
            # Alone, so that no mask can know of another one
            tokens = th.cat((seen, predictor.mask_token + code[TARGET_PLACES[sample, mask]]))[None]
            for block in predictor.blocks:
                tokens = block(tokens)
            expected = predictor.output(predictor.norm(tokens[0]))[-2:]
            assert th.allclose(predicted[sample, mask], expected, atol=1e-5)


def test_masked_prediction_depends_on_all_that_is_seen_and_on_its_place():
    predictor = make_masked_predictor()
    context = th.randn(2, 5, 16, requires_grad=True)
    predicted = predictor(context, CONTEXT_PLACES, TARGET_PLACES)
    for mask in range(3):
        (gradient,) = th.autograd.grad(predicted[0, mask].square().sum(), context, retain_graph=True)
        assert (gradient[0].abs().amax(dim=1) > 1e-6).all()
        assert not gradient[1].any()
    assert not th.allclose(predicted[0, 0, 0], predicted[0, 0, 1], atol=1e-3)
    # The same targets beside other masks
    others = TARGET_PLACES.clone()
    others[:, 1:] = th.tensor([[15, 16], [17, 18]])
    assert th.allclose(predictor(context, CONTEXT_PLACES, others)[:, 0], predicted[:, 0], atol=1e-6)


def test_masked_prediction_does_not_depend_on_the_order_of_the_context():
    predictor, context = make_masked_predictor(), th.randn(2, 1 + 4, 16)
    predicted = predictor(context, CONTEXT_PLACES, TARGET_PLACES)
    order = th.tensor([2, 0, 3, 1])
    shuffled = th.cat((context[:, :1], context[:, 1:][:, order]), dim=1)
    assert th.allclose(predictor(shuffled, CONTEXT_PLACES[:, order], TARGET_PLACES), predicted, atol=1e-5)
    # But on which token is at which place
    assert not th.allclose(predictor(shuffled, CONTEXT_PLACES, TARGET_PLACES), predicted, atol=1e-3)


@pytest.mark.parametrize("n_class_tokens", [0, 1])
def test_masked_prediction_does_not_depend_on_what_is_missing(n_class_tokens):
    predictor = make_masked_predictor()
    context = th.randn(2, n_class_tokens + 4, 16, requires_grad=True)
    missing = th.tensor([[False, True, False, False], [False, False, False, False]])
    predicted = predictor(context, CONTEXT_PLACES, TARGET_PLACES, missing)
    (gradient,) = th.autograd.grad(predicted[:, 0].square().sum(), context)
    depends_on = gradient.any(dim=2)[:, n_class_tokens:]
    assert th.equal(depends_on, ~missing)
    assert gradient.any(dim=2)[:, :n_class_tokens].all()
    # As if there had been three tokens only
    kept = [place for place in range(n_class_tokens + 4) if place != n_class_tokens + 1]
    alone = predictor(context[:1, kept], CONTEXT_PLACES[:1, [0, 2, 3]], TARGET_PLACES[:1])
    assert th.allclose(predicted[:1], alone, atol=1e-6)
    # Nothing at all may be known
    nothing = predictor(context, CONTEXT_PLACES, TARGET_PLACES, th.ones_like(missing))
    assert nothing.isfinite().all()


def test_masked_prediction_of_as_many_places_as_each_sample_has():
    predictor = make_masked_predictor()
    context, everywhere = th.randn(2, 6, 16), th.arange(6).expand(2, 6)
    seen = th.tensor([[1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0]], dtype=th.bool)
    predicted = th.tensor([[0, 0, 1, 0, 1, 0], [0, 0, 0, 1, 0, 0]], dtype=th.bool)
    prediction = predictor(context, everywhere, everywhere[:, None], ~seen, predicted[:, None])[:, 0]
    for sample in range(2):
        visible, hidden = (chosen[sample].nonzero()[:, 0] for chosen in (seen, predicted))
        alone = predictor(context[sample : sample + 1, visible], visible[None], hidden[None, None])[0, 0]
        assert th.allclose(prediction[sample, hidden], alone, atol=1e-5)
    nothing = predictor(
        context, everywhere, everywhere[:, None], th.ones(2, 6, dtype=th.bool), th.zeros(2, 1, 6, dtype=th.bool)
    )
    assert nothing.isfinite().all()


def test_an_axis_of_one_place_has_no_part_in_the_code():
    predictor = MaskedPredictor((3, 1, 8), 16, predictor_dim=4, num_heads=1)
    assert th.equal(predictor.place_code, position_code((3, 8), 4))
    assert MaskedPredictor((1, 1), 16, predictor_dim=4, num_heads=1).place_code.shape == (1, 4)


def test_masked_predictor_begins_as_the_encoder_does():
    predictor = make_masked_predictor(depth=3)
    assert len(predictor.blocks) == 3
    linear = [module for module in predictor.modules() if isinstance(module, nn.Linear)]
    assert len(linear) == 2 + 3 * 4
    for layer in linear:
        bound = math.sqrt(6 / sum(layer.weight.shape))
        assert 0.8 * bound < layer.weight.abs().max() <= bound
        assert not layer.bias.any()
    assert 0.01 < predictor.mask_token.std() < 0.03
    # The code is made anew, and not saved
    assert not any("code" in name for name in predictor.state_dict())
    assert "place_code" in dict(predictor.named_buffers())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("grid", (4, 0)),
        ("predictor_dim", 3),
        ("num_heads", 5),
    ],
)
def test_bad_arguments_of_the_masked_predictor(name, value):
    arguments = dict(grid=(4, 6), embed_dim=16, predictor_dim=12, num_heads=1)
    with pytest.raises(ValueError, match=f"`{name}`"):
        MaskedPredictor(**{**arguments, name: value})
