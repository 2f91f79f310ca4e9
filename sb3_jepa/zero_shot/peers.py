"""
What *TD-JEPA* is to be compared with: other ways to learn the same networks from the same data.

Two more are arguments of :class:`~sb3_jepa.TDJEPA`: ``gamma=0`` predicts one step, and ``next_actions="data"`` the
future of the behaviour.
"""

import torch as th

from sb3_jepa.zero_shot.losses import forward_backward_loss, orthonormality_loss
from sb3_jepa.zero_shot.td_jepa import TDJEPA, Batch


class ForwardBackward(TDJEPA):
    r"""
    Forward-backward representations (Touati and Ollivier 2021, arXiv 2103.07945) with the encoders of *TD-JEPA*:
    :math:`F = T(\varphi(s), a, z)` and :math:`B = \psi(s')` factorise the successor measure, and no state is predicted.
    Parameters are those of :class:`~sb3_jepa.TDJEPA`; the orthonormality of the task embeddings, which are :math:`B`,
    usually has a coefficient of 1.

    :raises ValueError: If both encoders are one
    """

    predicts_states = False

    def _setup_model(self) -> None:
        if self.policy_kwargs.get("symmetric"):
            raise ValueError(f"`symmetric` must be False for {type(self).__name__}, which has one predictor, got True")
        super()._setup_model()

    def representation_loss(self, batch: Batch) -> tuple[th.Tensor, dict[str, th.Tensor], th.Tensor, th.Tensor]:
        """
        :param batch: What to learn from
        :return: The loss, what is logged, and state and task embeddings without gradient
        """
        policy = self.policy
        state, backward = policy.state_encoder(batch.inputs), policy.task_encoder(batch.next_inputs)
        next_state = policy.target_encoders["state"](batch.next_inputs)
        actions = self._next_actions(next_state, batch)
        future = policy.target_predictors["state"](next_state, actions, batch.tasks).mean(dim=0)
        losses = {
            "forward_backward_loss": forward_backward_loss(
                policy.predictors["state"](state, batch.actions, batch.tasks),
                future,
                backward,
                policy.target_encoders["task"](batch.next_inputs),
                batch.discounts.flatten(),
            ),
            "state_orthonormality_loss": orthonormality_loss(state),
            "task_orthonormality_loss": orthonormality_loss(backward),
        }
        return *self._sum(losses), state.detach(), backward.detach()


class RandomTaskFeatures(ForwardBackward):
    r"""
    Universal successor features (Borsa et al. 2018, arXiv 1812.07626) of task embeddings that stay as they were
    initialised, :math:`T(\varphi(s), a, z) \approx \mathbb E \sum_k \gamma^k \psi(s_{t+k+1})`: the strongest cheap
    baseline. Parameters are those of :class:`~sb3_jepa.TDJEPA`.

    :raises ValueError: If both encoders are one
    """

    def representation_loss(self, batch: Batch) -> tuple[th.Tensor, dict[str, th.Tensor], th.Tensor, th.Tensor]:
        """
        :param batch: What to learn from
        :return: The loss, what is logged, and state and task embeddings without gradient
        """
        policy = self.policy
        state = policy.state_encoder(batch.inputs)
        next_state = policy.target_encoders["state"](batch.next_inputs)
        with th.no_grad():
            task = policy.task_encoder(batch.inputs)
            next_task = policy.task_encoder(batch.next_inputs)
        target = self._target("state", next_state, next_task, batch, self._next_actions(next_state, batch))
        return *self._sum(self._losses_of("state", state, target, batch)), state.detach(), task
