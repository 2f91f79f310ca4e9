"""T-JEPA: hidden columns of vectors and categories are predicted."""

from sb3_jepa.objectives.masked import MaskedPrediction


class TJepa(MaskedPrediction):
    """
    *T-JEPA* (Thimonier et al., ICLR 2025, arXiv 2410.05016), for vectors and categories: each column is a token, and
    four random subsets of the hidden columns are predicted, as a momentum copy of the encoder sees them. The class
    tokens are the paper's [REG] tokens: always visible and never a target, to which its released code does not hold.

    For columns, the defaults of :class:`MaskedPrediction` are T-JEPA's. See there for its parameters.
    """
