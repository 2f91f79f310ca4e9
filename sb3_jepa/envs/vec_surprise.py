"""The surprise of a model at each step of its environments, as an info and as a reward."""

import inspect
import pathlib
import pickle
from typing import Any

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.utils import check_for_correct_spaces, check_shape_equal
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecNormalize, unwrap_vec_normalize
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from sb3_jepa.common import checks
from sb3_jepa.common.files import reading, write_file
from sb3_jepa.common.next_observations import true_next_observations
from sb3_jepa.common.sb3_privates import wrap_env
from sb3_jepa.extractors.measuring import n_inputs_to_measure
from sb3_jepa.inspection.latent_model import LatentModel

# Keys of a step's info
SURPRISE, EXTRINSIC_REWARD = "surprise", "extrinsic_reward"


class VecSurprise(VecEnvWrapper):
    """
    Tells how surprising each step was to a model, and may reward it: ``info["surprise"]`` is the raw surprise (see
    :func:`surprise`), and with ``reward_coef`` above 0 the reward becomes

    ``reward + reward_coef * clip(surprise / deviation)``

    with the running standard deviation of the discounted sum of surprises, as in *Random Network Distillation*
    (arXiv 1810.12894): that sum goes on over the ends of episodes. ``info["extrinsic_reward"]`` keeps the reward that
    the environment gave.

    ``PPO(JepaPolicy, VecSurprise(env, reward_coef=0.1)).learn(...)`` is all there is to do: the model is made from the
    environment, and :class:`~sb3_jepa.JepaCallback` hands it over when the training starts. Without a training, call
    :meth:`set_model`. Until there is a model that has measured its inputs, the surprise is 0, and rewards and running
    deviation stay as they are. The model's parameters are followed as they learn.

    The order of wrappers matters:

    - ``Monitor`` and ``VecMonitor`` belong inside, where ``make_vec_env`` puts the former: their episode returns are
      then the environment's own, without what is added here.
    - What changes observations belongs inside, for the wrapper has to see what the policy sees: frame stacks, and
      ``VecNormalize`` with ``norm_obs=True``. (Stable-Baselines3's ``VecTransposeImage`` may be outside, where it is
      added by itself.)
    - ``VecNormalize`` with ``norm_obs=False`` belongs outside, and then scales the sum of both rewards. Around an
      off-policy algorithm's rewards it cannot be inside: the replay buffer takes its rewards, without the surprise.
    - For ``EvalCallback``, wrap the evaluation environment too, without a ``reward_coef``.

    :param venv: Environments
    :param reward_coef: What a surprise of one deviation adds to the reward; 0 leaves rewards alone
    :param encoder: Name of the network whose encoder and predictor are asked, such as ``"critic"``; by default the
        first that has both
    :param training: Whether to update the running deviation
    :param norm: Whether to divide by the running deviation and to clip; else the raw surprise is added
    :param clip: Largest surprise that is added, in deviations
    :param gamma: Discount factor of the sum whose deviation is measured
    :param epsilon: To avoid division by zero
    :raises ValueError: If an argument is out of range
    """

    def __init__(
        self,
        venv: VecEnv,
        reward_coef: float = 0.0,
        encoder: str | None = None,
        training: bool = True,
        norm: bool = True,
        clip: float = 10.0,
        gamma: float = 0.99,
        epsilon: float = 1e-8,
    ):
        VecEnvWrapper.__init__(self, checks.instance("venv", venv, VecEnv))
        self.reward_coef = checks.number("reward_coef", reward_coef, least=0)
        self.encoder = checks.optional(checks.text, "encoder", encoder)
        self.training, self.norm = checks.flag("training", training), checks.flag("norm", norm)
        self.clip = checks.number("clip", clip, above=0)
        self.gamma = checks.number("gamma", gamma, least=0, most=1)
        self.epsilon = checks.number("epsilon", epsilon, above=0)
        self.return_rms = RunningMeanStd(shape=())
        self._begin()

    def _begin(self) -> None:
        """What is not saved."""
        self.returns = np.zeros(self.num_envs)
        self._latent_model: LatentModel | None = None
        self._last_observations: Any = None

    def set_model(self, model: BaseAlgorithm) -> None:
        """
        Choose whose surprise it is. :class:`~sb3_jepa.JepaCallback` does so when the training of a model starts whose
        environment this is.

        :param model: Of any algorithm, with an encoder that learns
        :raises ValueError: If it has no such encoder, if that one learns something else than what an action leads to,
            or if the model sees other observations, or would learn from other rewards than those of this wrapper
        """
        self._check_wrappers(model)
        latent_model = LatentModel(model, self.encoder)
        other = latent_model.other_objective
        if other is not None:
            raise ValueError(
                "VecSurprise needs a predictor of what an action leads to, and the encoder "
                f"{latent_model.name!r} of this {type(model).__name__} learns {type(other).__name__}"
            )
        self._latent_model = latent_model

    def _check_wrappers(self, model: BaseAlgorithm) -> None:
        if _n_normalizing(model.get_env()) > _n_normalizing(self.venv):
            raise ValueError(
                "VecSurprise must see the observations that the policy sees, got one inside of a VecNormalize with "
                "`norm_obs=True`. Put it outside, VecSurprise(VecNormalize(env)), or let the JepaExtractor alone "
                "standardise observations, VecNormalize(VecSurprise(env), norm_obs=False)"
            )
        if isinstance(model, OffPolicyAlgorithm) and self.reward_coef > 0 and unwrap_vec_normalize(self.venv):
            raise ValueError(
                f"{type(model).__name__} stores the rewards that a VecNormalize is given, and one inside of "
                "VecSurprise is given none for surprise: use VecNormalize(VecSurprise(env), norm_obs=False), or "
                "`reward_coef=0`"
            )
        try:
            # As the model would see this environment: with the channels of images first
            seen = wrap_env(self, monitor_wrapper=False)
            check_for_correct_spaces(seen, model.observation_space, model.action_space)
        except ValueError as error:
            raise ValueError(
                "VecSurprise must see the observations and actions that the policy sees: wrappers that change them, "
                f"such as VecFrameStack, belong inside of it. {error}"
            ) from error

    @property
    def _is_ready(self) -> bool:
        latent_model = self._latent_model
        return (
            latent_model is not None
            and latent_model.has_objective
            and self._last_observations is not None
            and n_inputs_to_measure(latent_model.policy) == 0
        )

    def reset(self) -> Any:
        """Reset all environments, and return their first observations."""
        observations = self.venv.reset()
        self._last_observations = observations
        self.returns = np.zeros(self.num_envs)
        return observations

    def step_async(self, actions: np.ndarray) -> None:
        """Begin a step with actions as the environments execute them, ``(environments, *action shape)``."""
        self._actions = actions
        self.venv.step_async(actions)

    def step_wait(self) -> VecEnvStepReturn:
        """End a step: observations, rewards, whether episodes ended, and infos with the surprise."""
        observations, rewards, dones, infos = self.venv.step_wait()
        surprises = np.zeros(self.num_envs, dtype=np.float32)
        extrinsic_rewards = rewards
        if self._latent_model is not None and self._is_ready:
            led_to, is_known = true_next_observations(observations, dones, infos)
            surprises = self._latent_model.surprise(self._last_observations, self._actions, led_to)
            surprises = np.where(is_known, surprises, np.float32(0))
            if self.training:
                self.returns = self.returns * self.gamma + surprises
                self.return_rms.update(self.returns)
            if self.reward_coef > 0:
                rewards = (rewards + self.reward_coef * self.normalize(surprises)).astype(np.float32)
        # Copy the infos: an environment may return the same dictionary at each step
        infos = [{**info, SURPRISE: float(one)} for info, one in zip(infos, surprises, strict=True)]
        if self.reward_coef > 0:
            for info, reward in zip(infos, extrinsic_rewards, strict=True):
                info[EXTRINSIC_REWARD] = float(reward)
        self._last_observations = observations
        return observations, rewards, dones, infos

    def normalize(self, surprises: np.ndarray) -> np.ndarray:
        """
        Without updating the running deviation.

        :param surprises: Raw
        :return: In deviations, clipped; as they are if ``norm`` is false
        """
        if not self.norm:
            return surprises
        return np.clip(surprises / np.sqrt(self.return_rms.var + self.epsilon), -self.clip, self.clip)

    def __getstate__(self) -> dict[str, Any]:
        """Settings and running deviation: neither environments, which may not be picklable, nor the model."""
        left_out = ("venv", "class_attributes", "returns", "_latent_model", "_last_observations", "_actions")
        return {name: value for name, value in self.__dict__.items() if name not in left_out}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore what was pickled. :meth:`set_venv` must be called before the wrapper is used."""
        self.__dict__.update(state)
        self.venv = None  # type: ignore[assignment]

    def set_venv(self, venv: VecEnv) -> None:
        """
        Give an unpickled wrapper its environments.

        :param venv: Environments
        :raises ValueError: If it has some already
        """
        if self.venv is not None:
            raise ValueError("`venv` can be set once, got another one for a VecSurprise that has its environments")
        check_shape_equal(self.observation_space, venv.observation_space)
        self.venv = venv
        self.num_envs, self.render_mode = venv.num_envs, venv.render_mode
        self.class_attributes = dict(inspect.getmembers(self.__class__))
        self._begin()

    def save(self, save_path: str | pathlib.Path) -> None:
        """
        Save settings and running deviation, as ``VecNormalize.save`` does. If that fails, an older file stays as it
        was.

        :param save_path: Where to save
        """
        write_file(save_path, pickle.dumps(self))

    @staticmethod
    def load(load_path: str | pathlib.Path, venv: VecEnv) -> "VecSurprise":
        """
        Load what :meth:`save` saved. The model is set as with a new wrapper.

        :param load_path: The file; as it is a pickle, from a source that you trust
        :param venv: Environments to wrap
        :return: The wrapper
        :raises ValueError: If the file holds something else
        """
        with open(load_path, "rb") as file, reading(load_path, "what VecSurprise.save wrote"):
            wrapper = pickle.load(file)
            if not isinstance(wrapper, VecSurprise):
                raise TypeError(f"it holds a {type(wrapper).__name__}")
        wrapper.set_venv(venv)
        return wrapper


def _n_normalizing(venv: VecEnv | None) -> int:
    """How many wrappers normalise observations, one inside of the other."""
    n = 0
    while isinstance(venv, VecEnvWrapper):
        n += isinstance(venv, VecNormalize) and venv.norm_obs
        venv = venv.venv
    return n
