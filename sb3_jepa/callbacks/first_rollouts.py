"""Input statistics measured from the first rollouts, which are then evaluated anew."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.utils import obs_as_tensor

from sb3_jepa.common.next_observations import terminal_observation
from sb3_jepa.common.observations import as_observations, by_key
from sb3_jepa.common.sb3_privates import last_lstm_states, set_last_lstm_states
from sb3_jepa.extractors.measuring import measure_inputs, n_inputs_to_measure
from sb3_jepa.objectives import Objective

# Rows of a rollout that are evaluated at once
BATCH_SIZE = 256


class Timeout(NamedTuple):
    """
    A step that ended an episode by its time limit, to whose reward the algorithm adds the value of what it led to.

    :param row: Number of the step
    :param env_index: Number of the environment
    :param reward: What the environment gave
    :param observation: The last one of the episode
    """

    row: int
    env_index: int
    reward: float
    observation: Any


class FirstRollouts:
    """
    Measures the inputs from the first whole rollout of an on-policy algorithm (from as many as it takes, if they are
    short), after it was collected and before the algorithm learns from it. What the policy computes is another function
    then: values, log-probabilities and advantages of the rollout are computed anew. No step is wasted, and the
    algorithm's own ``collect_rollouts`` and ``train`` stay as they are.

    :param model: That collects the rollouts
    """

    def __init__(self, model: OnPolicyAlgorithm):
        self.model = model
        self._timeouts: list[Timeout] = []

    @property
    def are_over(self) -> bool:
        """Whether everything has been measured."""
        return n_inputs_to_measure(self.model.policy) == 0

    def on_step(self, step_locals: dict[str, Any]) -> None:
        """
        Note what the algorithm is about to add to a reward. To be called before it does, as ``BaseCallback.on_step``.

        :param step_locals: Local variables of ``collect_rollouts``
        """
        row = self.model.rollout_buffer.pos
        if row == 0:
            self._timeouts = []
        for env_index, (done, info) in enumerate(zip(step_locals["dones"], step_locals["infos"], strict=True)):
            observation = terminal_observation(done, info)
            if observation is not None and info.get("TimeLimit.truncated", False):
                reward = float(step_locals["rewards"][env_index])
                self._timeouts.append(Timeout(row, env_index, reward, observation))

    def on_rollout_end(self, rollout_locals: dict[str, Any], objectives: Mapping[str, Objective]) -> None:
        """
        Measure the rollout, and evaluate it anew.

        :param rollout_locals: Local variables of ``collect_rollouts`` after its last step
        :param objectives: What the encoders learn, by the names of :func:`~sb3_jepa.extractors.finding.find_encoders`
        """
        measure_inputs(self.model.policy, _batch_of(self.model.rollout_buffer.observations, slice(None)), objectives)
        evaluate_rollout(self.model, rollout_locals, self._timeouts)
        self._timeouts = []


@th.no_grad()
def evaluate_rollout(model: OnPolicyAlgorithm, rollout_locals: dict[str, Any], timeouts: list[Timeout]) -> None:
    """
    Compute values, log-probabilities, and what follows from them, of a whole rollout anew, as the policy is now.

    :param model: With the rollout in its buffer, from which no samples were drawn yet
    :param rollout_locals: Local variables of ``collect_rollouts`` after its last step
    :param timeouts: The steps of it that ended an episode by a time limit
    """
    buffer, policy, device = model.rollout_buffer, model.policy, model.device
    last_obs = obs_as_tensor(rollout_locals["new_obs"], device)
    dones = rollout_locals["dones"]
    was_training = policy.training
    policy.set_training_mode(False)
    if hasattr(buffer, "hidden_states_pi"):
        last_values = _evaluate_recurrent(model, last_obs, dones, timeouts)
    else:
        n_batches = min(buffer.buffer_size, -(-buffer.buffer_size * buffer.n_envs // BATCH_SIZE))
        for rows in np.array_split(np.arange(buffer.buffer_size), n_batches):
            _evaluate_rows(model, rows)
        for timeout in timeouts:
            value = policy.predict_values(policy.obs_to_tensor(timeout.observation)[0])  # type: ignore[arg-type]
            buffer.rewards[timeout.row, timeout.env_index] = timeout.reward + model.gamma * float(value)
        last_values = policy.predict_values(last_obs)
    policy.set_training_mode(was_training)
    buffer.compute_returns_and_advantage(last_values=last_values, dones=dones)


def _batch_of(observations: Any, rows: Any) -> Any:
    """Rows of a buffer, ``(rows, environments, ...)``, as one batch."""
    chosen = {key: array[rows] for key, array in by_key(observations).items()}
    return as_observations({key: array.reshape(-1, *array.shape[2:]) for key, array in chosen.items()})


def _actions(model: OnPolicyAlgorithm, rows: Any) -> th.Tensor:
    """As ``train()`` takes them, of one batch."""
    actions = th.as_tensor(model.rollout_buffer.actions[rows], device=model.device)
    actions = actions.reshape(-1, actions.shape[-1])
    return actions.long().flatten() if isinstance(model.action_space, spaces.Discrete) else actions.float()


def _evaluate_rows(model: OnPolicyAlgorithm, rows: np.ndarray) -> None:
    buffer, policy = model.rollout_buffer, model.policy
    masks = getattr(buffer, "action_masks", None)
    kwargs = {} if masks is None else dict(action_masks=masks[rows].reshape(-1, masks.shape[-1]))
    observations = obs_as_tensor(_batch_of(buffer.observations, rows), model.device)
    values, log_probs, _ = policy.evaluate_actions(observations, _actions(model, rows), **kwargs)
    buffer.values[rows] = values.reshape(len(rows), -1).cpu().numpy()
    buffer.log_probs[rows] = log_probs.reshape(len(rows), -1).cpu().numpy()


def _evaluate_recurrent(
    model: OnPolicyAlgorithm, last_obs: Any, dones: np.ndarray, timeouts: list[Timeout]
) -> th.Tensor:
    """Step by step, since the states of the LSTM change too. They end up in the buffer and in the model."""
    buffer: Any = model.rollout_buffer
    policy: Any = model.policy
    states = type(last_lstm_states(model))(
        *(
            tuple(th.as_tensor(array[0], device=model.device) for array in (hidden, cell))
            for hidden, cell in (
                (buffer.hidden_states_pi, buffer.cell_states_pi),
                (buffer.hidden_states_vf, buffer.cell_states_vf),
            )
        )
    )

    def as_tensor(starts: Any) -> th.Tensor:
        return th.as_tensor(np.asarray(starts), dtype=th.float32, device=model.device)

    for row in range(buffer.buffer_size):
        for name, (hidden, cell) in zip(("pi", "vf"), states, strict=True):
            getattr(buffer, f"hidden_states_{name}")[row] = hidden.cpu().numpy()
            getattr(buffer, f"cell_states_{name}")[row] = cell.cpu().numpy()
        obs = obs_as_tensor(_batch_of(buffer.observations, [row]), model.device)
        # Without sampling, so that no random number is drawn
        _, values, _, states = policy(obs, states, as_tensor(buffer.episode_starts[row]), deterministic=True)
        buffer.values[row] = values.flatten().cpu().numpy()
        buffer.log_probs[row] = policy.action_dist.log_prob(_actions(model, row)).cpu().numpy()
        for timeout in (one for one in timeouts if one.row == row):
            env = slice(timeout.env_index, timeout.env_index + 1)
            state = tuple(tensor[:, env].contiguous() for tensor in states.vf)
            terminal_obs = policy.obs_to_tensor(timeout.observation)[0]
            value = policy.predict_values(terminal_obs, state, as_tensor([False]))
            buffer.rewards[row, timeout.env_index] = timeout.reward + model.gamma * float(value)
    set_last_lstm_states(model, states)
    return policy.predict_values(last_obs, states.vf, as_tensor(dones))
