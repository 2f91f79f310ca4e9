"""SALT: a teacher that reconstructs, and an encoder that predicts what the teacher sees."""

from typing import Any

from torch import nn

from sb3_jepa.objectives.masked import MaskedPrediction, is_of_patches

# The masks of V-JEPA, which SALT keeps: many small blocks, and a few large ones
SALT_BLOCKS = (
    dict(n_masks=8, target_scale=(0.15, 0.15), union=True),
    dict(n_masks=2, target_scale=(0.7, 0.7), union=True),
)
# Their counterpart for tokens without neighbours: about half of them are hidden, or most
SALT_SUBSETS = (
    dict(n_masks=1, context_scale=(0.4, 0.6), target_scale=(0.4, 0.6)),
    dict(n_masks=1, context_scale=(0.1, 0.3), target_scale=(0.7, 0.9)),
)


class SaltTeacher(MaskedPrediction):
    """
    The first stage of *SALT* (Li et al. 2025, arXiv 2509.24317): hidden pixels, numbers or categories are
    reconstructed, under the masks of the second stage. What it has learned is the ``teacher`` of :class:`Salt`::

        from sb3_jepa import SaltTeacher
        from sb3_jepa.pretrain import pretrain

        pretrain("CartPole-v1", "teacher", SaltTeacher, n_steps=10_000, n_updates=1_000)

    :param encoder: The context encoder
    :param embed_dim: Width of the embedding
    :param kwargs: Those of :class:`MaskedPrediction`
    :raises ValueError: If an argument is not among those accepted
    """

    def __init__(self, encoder: nn.Module, embed_dim: int, **kwargs: Any):
        mask_kwargs = SALT_BLOCKS if is_of_patches(encoder) else SALT_SUBSETS
        defaults = dict(target="input", mask_kwargs=mask_kwargs, prediction_loss="l1")
        super().__init__(encoder, embed_dim, **{**defaults, **kwargs})


class Salt(MaskedPrediction):
    r"""
    The second stage of *SALT* (Li et al. 2025, arXiv 2509.24317): an encoder of any size predicts the tokens of a
    frozen teacher,

    .. math:: \min_{\theta, \phi} \lVert g_\phi(f_\theta(x), \delta_y) - f_T(y) \rVert_1

    which sees the whole observation. The targets never move. So nothing can collapse, and the loss tells which of
    several encoders is the best, if all had this teacher and these masks. Both stages in one call::

        from sb3_jepa.pretrain import pretrain_salt

        pretrain_salt("CartPole-v1", "encoder", n_steps=10_000, n_updates=1_000)

    What differs from the paper, which is about videos: vectors and categories have random subsets for masks, in the
    place of blocks. The teacher's tokens are normalised without parameters, as in V-JEPA.

    :param encoder: The context encoder
    :param embed_dim: Width of the embedding
    :param kwargs: Those of :class:`MaskedPrediction`, ``teacher`` among them
    :raises ValueError: If an argument is not among those accepted, or there is no teacher
    """

    def __init__(self, encoder: nn.Module, embed_dim: int, **kwargs: Any):
        mask_kwargs = SALT_BLOCKS if is_of_patches(encoder) else SALT_SUBSETS
        defaults = dict(target="frozen", mask_kwargs=mask_kwargs, prediction_loss="l1", normalize_targets=True)
        super().__init__(encoder, embed_dim, **{**defaults, **kwargs})
