"""What the wrappers of the training environment need to be told, and must not do."""

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecNormalize, unwrap_vec_wrapper

from sb3_jepa.envs.vec_surprise import VecSurprise


class EnvWrappersCallback(BaseCallback):
    """Hands the model to a :class:`~sb3_jepa.VecSurprise`, and refuses running means that are NaN."""

    def _on_training_start(self) -> None:
        surprise_env = unwrap_vec_wrapper(self.training_env, VecSurprise)
        if surprise_env is not None:
            surprise_env.set_model(self.model)

    def _on_rollout_start(self) -> None:
        normalize = unwrap_vec_wrapper(self.training_env, VecNormalize)
        if normalize is None or not normalize.norm_obs:
            return
        statistics = normalize.obs_rms if isinstance(normalize.obs_rms, dict) else {"": normalize.obs_rms}
        if any(np.isnan(one.mean).any() for one in statistics.values()):
            raise ValueError(
                "VecNormalize takes running means of the observations, and turns a number for good into NaN that was "
                "NaN once. Say `norm_obs=False`: a JepaExtractor standardises its input"
            )

    def _on_step(self) -> bool:
        return True
