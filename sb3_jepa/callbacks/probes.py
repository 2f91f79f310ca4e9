"""Linear probes of what an encoder knows of the environment."""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from sb3_jepa.callbacks.every_n_rollouts import EveryNRollouts
from sb3_jepa.callbacks.last_scalars import dump_last_scalars
from sb3_jepa.common import checks
from sb3_jepa.common.next_observations import terminal_observation
from sb3_jepa.common.observations import as_observations, by_key
from sb3_jepa.diagnostics import probe_episodes
from sb3_jepa.envs.pixels import state_names
from sb3_jepa.inspection.latent_model import LatentModel


class LoggedProbes(EveryNRollouts):
    """
    Logs what probes measure as ``jepa_probe/<name>``, every ``N`` rollouts and at the end.

    :param every_n_rollouts: How often, see :class:`~sb3_jepa.callbacks.every_n_rollouts.EveryNRollouts`
    :param encoder: Name of the network whose encoder is looked at
    :param verbose: Verbosity level
    """

    def measure(self) -> dict[str, float]:
        """
        :return: R² by the names of the probes
        """
        raise NotImplementedError

    def _look(self) -> None:
        for name, value in self.measure().items():
            self.logger.record(f"jepa_probe/{name}", value)

    def _on_training_end(self) -> None:
        is_due = self._n_steps_before < self.num_timesteps
        super()._on_training_end()
        if is_due:
            # What others have recorded since belongs to another time step
            names = [name for name in self.logger.name_to_value if name.startswith("jepa_probe/")]
            dump_last_scalars(self, names, self.num_timesteps)


class ProbeCallback(LoggedProbes):
    """
    Asks, every ``N`` rollouts and at the end, what the embedding knows: ridge regression from the frozen embedding to
    what can be read from the environment, with its R² on held-out episodes as ``jepa_probe/<variable>``. One: it can be
    read exactly. Zero: the mean would do as well.

    It looks at what the training visits, in all environments, and takes no step of its own. What the policy visits
    changes in the course of a training, and R² with it: of a pole that hardly moves, the little that it does is hard to
    read.

    Exactly one of ``attribute``, ``info_key`` and ``function`` says what is read.

    :param attribute: Attribute of the environments, as of ``VecEnv.get_attr``: ``"state"`` for ``env.unwrapped.state``
    :param info_key: Key of the infos
    :param function: Takes the ``VecEnv`` and returns one row of numbers for each environment
    :param names: Of the variables; by default those of the ``"state"`` of Gymnasium's classic control, and else numbers
    :param every_n_rollouts: How often; by default every 20 rollouts on-policy, and off-policy, where a rollout may be a
        single step, every 10,000 time steps
    :param every_n_steps: Only every ``N``-th step of the environments is kept, since those between tell little more
    :param n_samples: How many observations are kept, the latest
    :param held_out: Fraction of the episodes on which R² is measured
    :param encoder: Name of the network whose encoder is looked at, such as ``"critic"``; by default the first
    :param verbose: Verbosity level: 0 for no output, 1 for info messages, 2 for debug messages
    :raises ValueError: If not exactly one source is given, or a number is out of range; in the training, if there is
        nothing of that name in the environment or its infos, or it is no row of as many numbers as there are names
    """

    def __init__(
        self,
        attribute: str | None = None,
        info_key: str | None = None,
        function: Callable[[VecEnv], Any] | None = None,
        names: Sequence[str] | None = None,
        every_n_rollouts: int | None = None,
        every_n_steps: int = 4,
        n_samples: int = 2048,
        held_out: float = 0.25,
        encoder: str | None = None,
        verbose: int = 0,
    ):
        super().__init__(every_n_rollouts, encoder, verbose)
        sources = dict(attribute=attribute, info_key=info_key, function=function)
        given = [name for name, source in sources.items() if source is not None]
        if len(given) != 1:
            raise ValueError(
                f"Exactly one of `attribute`, `info_key` and `function` must say what is read, got {given or 'none'}"
            )
        self.attribute = checks.optional(checks.text, "attribute", attribute)
        self.info_key = checks.optional(checks.text, "info_key", info_key)
        self.function = checks.optional(checks.function, "function", function)
        self.names = checks.optional(checks.texts, "names", names)
        self.every_n_steps = checks.whole_number("every_n_steps", every_n_steps)
        self.n_samples = checks.whole_number("n_samples", n_samples)
        self.held_out = checks.number("held_out", held_out, above=0, below=1)
        # Observation, what was read, and the number of the episode
        self._samples: deque[tuple[dict[str, Any], np.ndarray, int]] = deque(maxlen=self.n_samples)
        self._n_episodes = 0
        self._episode_of_env = np.zeros(0, dtype=np.int64)

    def _on_training_start(self) -> None:
        super()._on_training_start()
        # Of a process that does not have it, reading it would be the end
        if self.attribute is not None and not self.training_env.has_attr(self.attribute):
            raise ValueError(f"`attribute={self.attribute!r}` is not there in the environments")
        if self.info_key is None:
            # Objects now, if that is nothing to be probed
            rows = self._read([{}] * self.training_env.num_envs)
            if self.attribute == "state" and self.names is None:
                self.names = state_names(self.training_env, rows.shape[1])
        n_envs = self.training_env.num_envs
        # In a training that goes on, so do the episodes
        if self.num_timesteps == 0 or len(self._episode_of_env) != n_envs:
            self._episode_of_env = self._n_episodes + np.arange(n_envs)
            self._n_episodes += n_envs

    def _on_step(self) -> bool:
        new_obs, dones, infos = (self.locals[name] for name in ("new_obs", "dones", "infos"))
        is_kept = self.n_calls % self.every_n_steps == 0
        rows = self._read(infos) if is_kept else None
        for env, done in enumerate(dones):
            episode = self._episode_of_env[env]
            if done:
                self._episode_of_env[env] = self._n_episodes
                self._n_episodes += 1
            if rows is None:
                continue
            observation = {key: array[env].copy() for key, array in by_key(new_obs).items()}
            # Infos belong to what the step led to, and all else to what comes next
            if self.info_key is None:
                episode = self._episode_of_env[env]
            elif done:
                last = terminal_observation(True, infos[env])
                observation = {} if last is None else dict(by_key(last))
            if observation:
                self._samples.append((observation, rows[env], episode))
        return True

    def _read(self, infos: list[dict[str, Any]]) -> np.ndarray:
        if self.function is not None:
            source, values = "`function`", self.function(self.training_env)
        elif self.attribute is not None:
            source, values = f"`attribute={self.attribute!r}`", self.training_env.get_attr(self.attribute)
        else:
            source, values = f"`info_key={self.info_key!r}`", [info.get(str(self.info_key)) for info in infos]
            if any(value is None for value in values):
                raise ValueError(f"{source} is not among the infos: {sorted(infos[0])}")
        columns = "numbers" if self.names is None else f"a number for each of {self.names}"
        wanted = f"{source} must give {columns}, for each of {len(infos)} environments"
        try:
            rows = np.array(values, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{wanted}, got {values}") from error
        if rows.ndim == 0 or len(rows) != len(infos):
            raise ValueError(f"{wanted}, got the shape {rows.shape}")
        rows = rows.reshape(len(infos), -1)
        if self.names is not None and rows.shape[1] != len(self.names):
            raise ValueError(f"{wanted}, got {rows.shape[1]} numbers")
        return rows

    def measure(self) -> dict[str, float]:
        """
        :return: R² of each variable, on held-out episodes; without those that do not vary there, and empty while there
            are fewer than four episodes
        """
        if not self._samples:
            return {}
        observations, values, episodes = zip(*self._samples, strict=True)
        batch = {key: np.stack([observation[key] for observation in observations]) for key in observations[0]}
        embeddings = LatentModel(self.model, self.encoder).embed(as_observations(batch)).double().cpu().numpy()
        return probe_episodes(embeddings, np.stack(values), np.array(episodes), self.names, self.held_out)
