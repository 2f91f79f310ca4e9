import copy
import itertools
import math

import pytest
import torch as th
from torch.nn import functional as F

from sb3_jepa.parts import MomentumEncoder, NeighborAggregation
from sb3_jepa.parts.neighbors import neighbor_places


def brute_force_neighbors(grid: tuple[int, ...], window: int) -> list[set[int]]:
    """Of each place, those that are no further away than half a window along any axis."""
    places = list(itertools.product(*map(range, grid)))
    return [
        {
            number
            for number, other in enumerate(places)
            if other != place and all(abs(a - b) <= window // 2 for a, b in zip(place, other, strict=True))
        }
        for place in places
    ]


def textbook_attention(block, query: th.Tensor, keys: th.Tensor) -> th.Tensor:
    """What the query ``(dim,)`` gets of the keys ``(tokens, dim)``, head by head."""
    weight, bias = block.attention.qkv.weight, block.attention.qkv.bias
    (w_q, w_k, w_v), (b_q, b_k, b_v) = weight.chunk(3), bias.chunk(3)
    size = len(query) // block.attention.num_heads
    heads = []
    for head in range(block.attention.num_heads):
        rows = slice(head * size, (head + 1) * size)
        q, k, v = (
            tokens @ w[rows].T + b[rows] for tokens, w, b in ((query, w_q, b_q), (keys, w_k, b_k), (keys, w_v, b_v))
        )
        heads.append(((k @ q) / math.sqrt(size)).softmax(dim=0) @ v)
    return block.attention.proj(th.cat(heads))


def make_aggregation(grid: tuple[int, ...] = (3, 3), embed_dim: int = 8, **kwargs) -> NeighborAggregation:
    th.manual_seed(0)
    aggregation = NeighborAggregation(grid, embed_dim, num_heads=2, **kwargs)
    for parameter in aggregation.parameters():
        # Biases and norms that do something
        th.nn.init.normal_(parameter, mean=0.2, std=0.3)
    return aggregation


@pytest.mark.parametrize(
    ("grid", "window"), [((4,), 3), ((3, 3), 3), ((2, 2, 2), 3), ((4, 6), 3), ((1, 5), 3), ((4, 6), 5), ((7,), 5)]
)
def test_neighbors_are_those_in_the_window(grid, window):
    places, missing = neighbor_places(grid, window)
    assert places.shape == missing.shape == (math.prod(grid), window ** len(grid) - 1)
    for own, beyond, expected in zip(places, missing, brute_force_neighbors(grid, window), strict=True):
        assert sorted(own[~beyond].tolist()) == sorted(expected)


def test_neighbors_by_hand():
    places, missing = neighbor_places((4,), 3)
    assert [set(own[~beyond].tolist()) for own, beyond in zip(places, missing, strict=True)] == [
        {1},
        {0, 2},
        {1, 3},
        {2},
    ]
    places, missing = neighbor_places((3, 3), 3)
    # A corner, an edge, the centre. Nothing wraps around
    assert [set(places[i][~missing[i]].tolist()) for i in (0, 5, 4)] == [
        {1, 3, 4},
        {1, 2, 4, 7, 8},
        {0, 1, 2, 3, 5, 6, 7, 8},
    ]
    # Each sees all others of a cube of two, and not itself
    places, missing = neighbor_places((2, 2, 2), 3)
    assert [set(own[~beyond].tolist()) for own, beyond in zip(places, missing, strict=True)] == [
        set(range(8)) - {i} for i in range(8)
    ]


@pytest.mark.parametrize("k", [1, 4, 8])
def test_the_most_similar_neighbors_are_chosen(k):
    grid = (4, 5)
    aggregation = make_aggregation(grid, k=k)
    # One of five kinds each, and a little noise, so that no two are equally similar
    latents = 3.0 * F.one_hot(th.randint(5, (2, 20)), 8) + 0.1 * th.randn(2, 20, 8)
    places, missing = aggregation.select(latents)
    for image, own_places, own_missing in zip(latents, places, missing, strict=True):
        for i, around in enumerate(brute_force_neighbors(grid, 3)):
            nearest = sorted(around, key=lambda j, i=i: -F.cosine_similarity(image[i], image[j], dim=0))
            assert sorted(own_places[i][~own_missing[i]].tolist()) == sorted(nearest[:k])


def test_random_neighbors_are_neighbors_and_new_in_every_call():
    aggregation = make_aggregation((3, 4), selection="random")
    latents = th.randn(1, 12, 8).expand(50, -1, -1)
    th.manual_seed(1)
    places, missing = aggregation.select(latents)
    for i, around in enumerate(brute_force_neighbors((3, 4), 3)):
        chosen = [own[~beyond].tolist() for own, beyond in zip(places[:, i], missing[:, i], strict=True)]
        assert all(len(set(own)) == len(own) == min(4, len(around)) for own in chosen)
        # In 50 images, each of them
        assert set().union(*chosen) == around
    assert not th.equal(aggregation(latents), aggregation(latents))
    th.manual_seed(1)
    assert th.equal(aggregation.select(latents)[0], places)


def test_mean_of_neighbors_by_hand():
    # LayerNorm keeps them as they are, but for its epsilon
    a, b, c, d = th.tensor(
        [[1.0, 1.0, -1.0, -1.0], [1.0, -1.0, 1.0, -1.0], [1.0, -1.0, -1.0, 1.0], [1.0, 1.0, -1.0, -1.0]]
    )
    latents = 5.0 * th.stack((a, b, c, d))[None] + 2.0
    aggregation = NeighborAggregation((2, 2), 4, k=4, aggregation="mean")
    # All three neighbours that exist
    expected = th.stack((b + c + d, a + c + d, a + b + d, a + b + c))[None] / 3
    assert th.allclose(aggregation(latents), expected, atol=1e-5)
    # a is most similar to d, and d to a
    targets = NeighborAggregation((2, 2), 4, k=1, aggregation="mean")(latents)
    assert th.allclose(targets[0, 0], d, atol=1e-5)
    assert th.allclose(targets[0, 3], a, atol=1e-5)

    assert not list(aggregation.parameters())
    assert not aggregation.state_dict()
    assert aggregation.transform_context(latents) is latents


@pytest.mark.parametrize("token", [0, 4])  # With fewer neighbours than are taken, and with more
def test_attention_matches_the_textbook(token):
    aggregation = make_aggregation()
    latents = th.randn(2, 9, 8)
    s = F.layer_norm(latents[1], (8,))
    around = sorted(brute_force_neighbors((3, 3), 3)[token], key=lambda j: -F.cosine_similarity(s[token], s[j], dim=0))
    neighbors = s[around[:4]]
    query = s.mean(dim=0)
    for block in aggregation.blocks:
        keys = block.attention_norm(th.cat((query[None], neighbors)))
        query = query + textbook_attention(block, keys[0], keys)
        query = query + block.mlp(block.mlp_norm(query))
    assert th.allclose(aggregation(latents)[1, token], aggregation.norm(query), atol=1e-5)


def test_context_matches_the_textbook():
    aggregation = make_aggregation()
    context = th.randn(2, 5, 8)
    expected = context[1]
    for block in aggregation.blocks:
        mean = expected.mean(dim=0)
        keys = block.attention_norm(th.cat((mean[None], expected)))
        attended = textbook_attention(block, keys[0], keys)
        expected = th.stack([token + attended for token in expected])
        expected = th.stack([token + block.mlp(block.mlp_norm(token)) for token in expected])
    transformed = aggregation.transform_context(context)
    assert transformed.shape == context.shape
    assert th.allclose(transformed[1], aggregation.norm(expected), atol=1e-5)


@pytest.mark.parametrize("class_tokens", [1, 3])
def test_class_tokens_have_no_part_in_the_query_of_the_context(class_tokens):
    aggregation = make_aggregation()
    context = th.randn(2, class_tokens + 5, 8)
    expected = context[1]
    for block in aggregation.blocks:
        # They are asked all the same
        keys = block.attention_norm(th.cat((expected[class_tokens:].mean(dim=0)[None], expected)))
        expected = expected + textbook_attention(block, keys[0], keys)
        expected = expected + block.mlp(block.mlp_norm(expected))
    transformed = aggregation.transform_context(context, class_tokens)
    assert th.allclose(transformed[1], aggregation.norm(expected), atol=1e-5)
    assert not th.allclose(aggregation.transform_context(context), transformed, atol=1e-3)


@pytest.mark.parametrize("grid", [(1, 3, 3), (3, 1, 3)])
def test_an_axis_of_one_place_has_no_neighbors(grid):
    aggregation, flat = make_aggregation(grid), make_aggregation((3, 3))
    assert th.equal(aggregation.places, flat.places)
    assert th.equal(aggregation.missing, flat.missing)
    with pytest.raises(ValueError, match="from 1 to 8"):
        make_aggregation(grid, k=9)


@pytest.mark.parametrize("aggregation", ["attention", "mean"])
@pytest.mark.parametrize("grid", [(6,), (3, 4), (2, 2, 3)])
def test_targets_do_not_depend_on_the_other_images(aggregation, grid):
    aggregation = make_aggregation(grid, k=2, aggregation=aggregation)
    latents = th.randn(3, math.prod(grid), 8)
    alone = th.cat([aggregation(image[None]) for image in latents])
    assert th.allclose(aggregation(latents), alone, atol=1e-5)


def test_a_target_is_made_of_its_neighbors_and_not_of_its_own_patch():
    aggregation = make_aggregation((5, 5), k=8, aggregation="mean")
    latents = th.randn(1, 25, 8, requires_grad=True)
    (gradient,) = th.autograd.grad(aggregation(latents)[0, 12] @ th.randn(8), latents)
    depends_on = gradient[0].any(dim=1).nonzero().flatten()
    assert set(depends_on.tolist()) == brute_force_neighbors((5, 5), 3)[12]


def test_context_trains_what_the_momentum_copy_makes_targets_with():
    aggregation = make_aggregation()
    target = MomentumEncoder(aggregation)
    latents = th.randn(2, 9, 8)
    before = target(latents)
    assert th.equal(before, aggregation(latents))
    assert not before.requires_grad

    # The sum alone would be that of the biases of the last norm
    (aggregation.transform_context(th.randn(2, 4, 8)) * th.randn(8)).sum().backward()
    gradients = {name: parameter.grad for name, parameter in aggregation.named_parameters()}
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients.values())
    th.optim.SGD(aggregation.parameters(), lr=0.1).step()
    assert th.equal(target(latents), before)
    target.update(aggregation, 0.0)
    assert th.equal(target(latents), aggregation(latents))


def test_saved_are_the_parameters_only():
    aggregation = make_aggregation()
    other = NeighborAggregation((3, 3), 8, num_heads=2)
    assert set(aggregation.state_dict()) == {name for name, _ in aggregation.named_parameters()}
    other.load_state_dict(aggregation.state_dict())
    latents = th.randn(2, 9, 8)
    assert th.equal(other(latents), aggregation(latents))
    assert th.equal(copy.deepcopy(aggregation)(latents), aggregation(latents))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(window=4), "`window`.*odd.*got 4"),
        (dict(window=1), "`window`.*at least 3, got 1"),
        (dict(k=9), "`k`.*from 1 to 8.*got 9"),
        (dict(grid=(3, 3, 3), k=27), "`k`.*from 1 to 26.*got 27"),
        (dict(aggregation="sum"), '`aggregation` must be "attention" or "mean", got \'sum\''),
        (dict(selection="nearest"), '`selection` must be "similar" or "random", got \'nearest\''),
        (dict(grid=(1, 1)), r"`grid`.*at least 2.*got \(1, 1\)"),
        (dict(grid=(-2, -2)), "`grid`.*positive"),
        (dict(num_heads=3), "`num_heads` must divide"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        NeighborAggregation(**{"grid": (3, 3), "embed_dim": 8, **kwargs})


def test_tokens_must_fit_the_grid():
    # Such as a class token in front
    with pytest.raises(ValueError, match="9 places, got 10"):
        make_aggregation()(th.zeros(2, 10, 8))
