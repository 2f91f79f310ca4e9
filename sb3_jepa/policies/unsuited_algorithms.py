"""Errors of algorithms that cannot train a policy that learns jointly: they give it no transitions."""

HOW_TO_TRAIN = (
    "Use an algorithm of sb3_jepa, such as `sb3_jepa.PPO` or `sb3_jepa.SAC`, or pass "
    "`rollout_buffer_class=sb3_jepa.JepaRolloutBuffer` (JepaDictRolloutBuffer for a Dict) to PPO or A2C"
)
# Each off-policy algorithm asks its new policy for one of these
OFF_POLICY_NETWORKS = ("actor", "q_net", "quantile_net")


class NotForOffPolicyError(AttributeError, ValueError):
    """
    A policy that learns jointly was given to an off-policy algorithm.

    :param policy_class: Of the policy
    :param name: What the algorithm asked for
    """

    def __init__(self, policy_class: type, name: str):
        super().__init__(
            f"An off-policy algorithm cannot train a {policy_class.__name__}, which has no `{name}` and learns from "
            f'rollouts. The off-policy algorithms of sb3_jepa have a policy of their own, by the name "JepaPolicy". '
            f"{HOW_TO_TRAIN}"
        )


class WithoutTransitionsError(ValueError):
    """
    A policy that learns jointly was given observations to learn from.

    :param policy_class: Of the policy
    """

    def __init__(self, policy_class: type):
        super().__init__(
            f"{policy_class.__name__} was about to be trained without its JEPA loss, since it was given observations "
            f"and not transitions. {HOW_TO_TRAIN}"
        )
