from functools import partial

import pytest
import torch as th

from sb3_jepa.parts import BlockMasks, Masks, SubsetMasks
from sb3_jepa.parts.masks import MAX_SIZES_AT_FIRST

SHORT_BLOCKS = partial(BlockMasks, n_masks=8, target_scale=(0.15, 0.15), union=True)
LONG_BLOCKS = partial(BlockMasks, n_masks=2, target_scale=(0.7, 0.7), union=True)
FAMILIES = {
    "subsets": SubsetMasks,
    "blocks": BlockMasks,
    "complement": partial(BlockMasks, context_scale=None),
    "short": SHORT_BLOCKS,
    "long": LONG_BLOCKS,
}
GRIDS = [(4, 6), (4, 4, 4), (8, 8), (1, 6), (6,), (2, 2), (1, 1, 4), (3,)]


def seeded(seed: int = 0) -> th.Generator:
    return th.Generator().manual_seed(seed)


def are_in(places: th.Tensor, n_tokens: int) -> th.Tensor:
    """Which tokens are among the places, ``(..., n_tokens)``."""
    return th.zeros(*places.shape[:-1], n_tokens, dtype=th.bool).scatter_(-1, places, True)


def in_context(masks: Masks, n_tokens: int) -> th.Tensor:
    return are_in(masks.context, n_tokens)


def in_targets(masks: Masks, n_tokens: int) -> th.Tensor:
    return are_in(masks.targets, n_tokens).any(dim=1)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_predicted_is_never_seen(family, grid):
    sampler = FAMILIES[family](grid)
    for seed in range(20):
        masks = sampler.sample(32, seeded(seed))
        assert masks.context.shape[0] == masks.targets.shape[0] == 32
        assert masks.targets.shape[1] == (1 if family in ("short", "long") else sampler.n_masks)
        for places in masks:
            assert places.dtype == th.long
            assert places.shape[-1] >= 1
            assert places.min() >= 0
            assert places.max() < sampler.n_tokens
            # In order, and none twice
            assert (places.diff(dim=-1) > 0).all()
        assert not (in_context(masks, sampler.n_tokens) & in_targets(masks, sampler.n_tokens)).any()


@pytest.mark.parametrize("family", FAMILIES)
def test_same_seed_same_masks(family):
    sampler = FAMILIES[family]((4, 6))
    masks, again, other = (sampler.sample(16, seeded(seed)) for seed in (1, 1, 2))
    assert th.equal(masks.context, again.context)
    assert th.equal(masks.targets, again.targets)
    assert not all(map(th.equal, masks, other))
    # What Stable-Baselines3 seeds is taken where no generator is given; a constructor leaves it as it is
    th.manual_seed(1)
    FAMILIES[family]((4, 6))
    from_global = sampler.sample(16)
    assert th.equal(masks.context, from_global.context)
    assert th.equal(masks.targets, from_global.targets)


@pytest.mark.parametrize("family", FAMILIES)
def test_masks_among_candidates(family):
    candidates = th.rand(64, 24, generator=seeded()) < th.linspace(0.0, 1.0, 64)[:, None]
    context, targets = FAMILIES[family]((4, 6)).sample(64, seeded(), candidates)
    assert context.shape == (64, 24)
    assert context.dtype == targets.dtype == th.bool
    assert not (targets.any(dim=1) & context).any()
    assert not ((targets.any(dim=1) | context) & ~candidates).any()
    # The more candidates, the more of both
    for chosen in (context, targets.any(dim=1)):
        assert chosen[-16:].sum() > 2 * chosen[:16].sum() > 0


def test_subsets_are_shares_of_the_candidates():
    candidates = th.arange(12) < th.tensor([0, 1, 2, 5, 12])[:, None]
    context, targets = SubsetMasks((12,), 3, (0.4, 0.4), (0.6, 0.6)).sample(5, seeded(), candidates)
    assert context.sum(dim=1).tolist() == [0, 1, 1, 2, 5]
    assert targets.sum(dim=2).T.tolist() == [[0, 0, 1, 3, 7]] * 3


def test_masks_move_to_a_device():
    masks = BlockMasks((4, 6)).sample(2).to("meta")
    assert isinstance(masks, Masks)
    assert masks.context.device.type == masks.targets.device.type == "meta"


def test_sizes_of_subsets_are_those_that_fit():
    # Of 10 tokens, 2 to 5 are context and 4 to 7 targets of a mask
    sampler, generator = SubsetMasks((10,), context_scale=(0.2, 0.5), target_scale=(0.4, 0.7)), seeded()
    drawn = []
    for _ in range(1200):
        masks = sampler.sample(1, generator)
        drawn.append((masks.context.shape[1], masks.targets.shape[2]))
    fitting = {(context, target) for context in range(2, 6) for target in range(4, 8) if context + target <= 10}
    # Drawing anew until a pair fits makes all of these equally likely: 13 of 16
    assert set(drawn) == fitting
    counts = th.tensor([drawn.count(pair) for pair in fitting])
    assert counts.min() > 1200 / 13 - 40
    assert counts.max() < 1200 / 13 + 40


def test_two_columns_are_one_of_each():
    masks = SubsetMasks((2,), n_masks=3).sample(64, seeded())
    assert masks.context.shape == (64, 1)
    assert th.equal(masks.targets, (1 - masks.context)[:, None].expand(-1, 3, -1))


def test_each_column_is_context_and_target_alike():
    # Drawn among all tokens, class tokens included, the last column would be neither
    sampler = SubsetMasks((5,), context_scale=(0.4, 0.4), target_scale=(0.4, 0.4))
    masks = sampler.sample(2000, seeded())
    assert th.allclose(in_context(masks, 5).float().mean(dim=0), th.tensor(0.4), atol=0.05)
    # Of three columns that are not seen, two
    of_masks = are_in(masks.targets, 5).float().mean(dim=0)
    assert of_masks.shape == (4, 5)
    assert th.allclose(of_masks, th.tensor(0.4), atol=0.05)
    # Each mask is drawn by itself: two of them agree in a third of the samples
    agree = (masks.targets[:, 0] == masks.targets[:, 1]).all(dim=1).float().mean()
    assert agree == pytest.approx(1 / 3, abs=0.05)


@pytest.mark.parametrize(
    ("grid", "scale", "aspect_ratio", "rows_and_columns"),
    [
        ((8, 8), 0.1875, 0.75, (3, 4)),
        ((8, 8), 0.1875, 4 / 3, (4, 3)),
        ((4, 6), 0.25, 1.5, (3, 2)),
        ((4, 6), 0.75, 1.5, (4, 4)),  # As high as the grid at most: wider instead
        ((8, 2), 0.5, 0.5, (4, 2)),  # As wide as the grid at most: higher instead
        ((4, 6), 1 / 24, 1.0, (1, 1)),
        ((1, 6), 0.5, 1.0, (1, 3)),
        ((6,), 0.5, 1.5, (1, 3)),
        ((2, 2), 0.1, 1.0, (1, 1)),
    ],
)
def test_a_block_is_a_rectangle_inside_the_grid(grid, scale, aspect_ratio, rows_and_columns):
    sampler = BlockMasks(grid, 2, (scale, scale), (aspect_ratio, aspect_ratio), context_scale=None)
    masks = sampler.sample(256, seeded())
    n_rows, n_columns = (1, *grid)[-2:]
    rows, columns = masks.targets // n_columns, masks.targets % n_columns
    height, width = rows_and_columns
    # As many places as the rectangle around them has: all of them, and from one side of the grid to the other no wrap
    assert masks.targets.shape[2] == height * width
    for of_places, extent, side in ((rows, height, n_rows), (columns, width, n_columns)):
        first, last = of_places.amin(dim=2), of_places.amax(dim=2)
        assert (last - first == extent - 1).all()
        # Everywhere in the grid, to its last row and column
        assert first.unique().tolist() == list(range(side - extent + 1))


def test_a_block_spans_its_share_of_the_frames():
    masks = BlockMasks((4, 4, 4), 1, (0.25, 0.25), (1.0, 1.0), None).sample(64, seeded())
    # The same four places in all frames
    by_frame = masks.targets.unflatten(2, (4, 4)) - 16 * th.arange(4)[:, None]
    assert th.equal(by_frame, by_frame[:, :, :1].expand_as(by_frame))

    masks = BlockMasks((4, 4, 4), 1, (0.25, 0.25), (1.0, 1.0), None, frame_scale=(0.5, 0.5)).sample(64, seeded())
    assert masks.targets.shape == (64, 1, 8)
    frames = masks.targets // 16
    assert (frames[..., :4] == frames[..., :1]).all()
    assert (frames[..., 4:] == frames[..., :1] + 1).all()
    assert frames[..., 0].unique().tolist() == [0, 1, 2]


def test_context_is_a_block_without_the_targets():
    # A context of 3x3 in 4x4, and a target of one token, which may lie in it: 8 or 9 are left, and 8 of them kept
    masks = BlockMasks((4, 4), 1, (1 / 16, 1 / 16), context_scale=(9 / 16, 9 / 16)).sample(256, seeded())
    assert masks.context.shape == (256, 8)
    rows, columns = masks.context // 4, masks.context % 4
    assert (rows.amax(dim=1) - rows.amin(dim=1) == 2).all()
    assert (columns.amax(dim=1) - columns.amin(dim=1) == 2).all()
    # It spans all frames
    masks = BlockMasks((3, 4, 4), 1, (1 / 16, 1 / 16), context_scale=(1.0, 1.0)).sample(16, seeded())
    assert masks.context.shape == (16, 45)
    # All that is not hidden
    masks = BlockMasks((4, 4), 1, (1 / 16, 1 / 16), context_scale=None).sample(256, seeded())
    assert (in_context(masks, 16) ^ in_targets(masks, 16)).all()


def test_union_is_one_mask_and_the_context_all_else():
    sampler = BlockMasks((6,), 2, (1 / 3, 1 / 3), union=True)
    sizes = set()
    for seed in range(60):
        # Of a single sample, nothing is cut
        masks = sampler.sample(1, seeded(seed))
        assert (in_context(masks, 6) ^ in_targets(masks, 6)).all()
        sizes.add(tuple(masks.targets.shape))
    # Two blocks of two tokens
    assert sizes == {(1, 1, 2), (1, 1, 3), (1, 1, 4)}


def test_samples_are_cut_at_random():
    # Two blocks of two in a row of eight hide 2, 3 or 4 tokens: 2 are kept as targets of all samples, and 4 as context
    masks = BlockMasks((8,), 2, (0.25, 0.25), union=True).sample(4096, seeded())
    assert masks.targets.shape == (4096, 1, 2)
    assert masks.context.shape == (4096, 4)
    # The grid read backwards looks the same
    for chosen in (in_context(masks, 8), in_targets(masks, 8)):
        share = chosen.float().mean(dim=0)
        assert th.allclose(share, share.flip(0), atol=0.05)


@pytest.mark.parametrize("min_context", [1, 3, 8])
def test_no_sample_has_too_small_a_context(min_context):
    sampler = SHORT_BLOCKS((4, 6), min_context=min_context)
    sizes = [sampler.sample(256, seeded(seed)).context.shape[1] for seed in range(10)]
    assert min(sizes) >= min_context
    # Of 256 samples, one has no more than that
    assert min(sizes) <= max(min_context, 2)


def test_a_sample_that_never_fits_takes_the_mask_of_another():
    # Of the 25 positions of two blocks of two in a row of six, 5 leave four tokens
    sampler = BlockMasks((6,), 2, (1 / 3, 1 / 3), union=True, min_context=4)
    # Nearly all fit in the end, and two samples have one mask by chance only: not four times in five
    pairs = [sampler.sample(2, seeded(seed)).targets for seed in range(50)]
    assert sum(th.equal(*pair) for pair in pairs) < 25

    # One in twelve does not fit in eleven draws
    masks = sampler.sample(4096, seeded())
    assert masks.context.shape == (4096, 4)
    assert masks.targets.shape == (4096, 1, 2)
    assert (in_context(masks, 6) ^ in_targets(masks, 6)).all()
    # The mask of any other, not always of the same one, which would have more than a quarter
    _, counts = masks.targets.unique(dim=0, return_counts=True)
    assert len(counts) == 5
    assert counts.max() < 0.23 * 4096


def test_a_size_that_never_fits_is_drawn_anew():
    # Five of six of these sizes are nearer to four of four tokens than to three
    sampler = BlockMasks((4,), 1, (0.85, 1.0), union=True)
    for seed in range(4 * MAX_SIZES_AT_FIRST):
        masks = sampler.sample(1, seeded(seed))
        assert masks.context.shape == (1, 1)
        assert masks.targets.shape == (1, 1, 3)


@pytest.mark.parametrize("sampler_class", [SubsetMasks, BlockMasks])
def test_bad_arguments_of_all_samplers(sampler_class):
    for grid in ((1,), (1, 1), (0, 4)):
        with pytest.raises(ValueError, match="`grid`"):
            sampler_class(grid)
    for name in ("context_scale", "target_scale"):
        for scale in ((0.0, 0.5), (0.5, 0.2), (0.5, 1.5), (0.5,)):
            with pytest.raises(ValueError, match=f"`{name}`"):
                sampler_class((4, 6), **{name: scale})


def test_subsets_that_never_fit():
    with pytest.raises(ValueError, match=r"`context_scale` and `target_scale`.*at least 6 \+ 5 of 10 tokens"):
        SubsetMasks((10,), context_scale=(0.6, 0.8), target_scale=(0.5, 0.8))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("grid", (2, 2, 2, 2)),
        ("aspect_ratio", (1.5, 0.75)),
        ("aspect_ratio", (0.0, 1.0)),
        ("aspect_ratio", (1.0, float("inf"))),
        ("frame_scale", (0.5, 2.0)),
        ("min_context", 25),
        ("target_scale", (1.0, 1.0)),
        ("n_masks", 1000),
    ],
)
def test_bad_arguments_of_blocks(name, value):
    with pytest.raises(ValueError, match=f"`{name}`"):
        BlockMasks(**{"grid": (4, 6), name: value})
