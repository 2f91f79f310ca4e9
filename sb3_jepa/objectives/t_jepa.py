"""T-JEPA: hidden columns of vectors and categories are predicted."""

from sb3_jepa.objectives.masked import MaskedPrediction


class TJepa(MaskedPrediction):
    """
    *T-JEPA* (Thimonier et al., ICLR 2025, arXiv 2410.05016), for vectors and categories: each column is a token, and
    four random subsets of the hidden columns are predicted, as a momentum copy of the encoder sees them. The class
    tokens are the paper's [REG] tokens::

        from sb3_jepa import TJepa
        from sb3_jepa.pretrain import pretrain

        pretrain("CartPole-v1", "encoder", TJepa, n_steps=10_000, n_updates=1_000)

    What differs from the paper: [REG] tokens are always visible and never a target, to which its released code does not
    hold; numbers are standardised instead of scaled to [0, 1]; and blocks normalise their input, not their output.

    For columns, the defaults of :class:`MaskedPrediction` are T-JEPA's. See there for its parameters.
    """
