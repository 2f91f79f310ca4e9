"""The acting policy as a file that needs neither Stable-Baselines3 nor this package."""

import copy
import pathlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_jepa.common import checks
from sb3_jepa.common.actions import forget_graphs, unscale_actions
from sb3_jepa.common.files import in_memory, replace_when_complete
from sb3_jepa.common.observations import NO_KEY, as_observations, by_key
from sb3_jepa.common.sb3_privates import best_actions
from sb3_jepa.common.torch_privates import without_distribution_checks


class ActingPolicy(nn.Module):
    """
    What ``model.predict(observation, deterministic=True)`` computes, as one module: preprocessing, standardised inputs,
    encoder, actor, and actions in the environment's units.

    :param policy: Of any algorithm
    """

    low: th.Tensor
    high: th.Tensor

    def __init__(self, policy: BasePolicy):
        super().__init__()
        self.policy = policy
        space = policy.action_space
        if isinstance(space, spaces.Box):
            self.register_buffer("low", th.as_tensor(space.low))
            self.register_buffer("high", th.as_tensor(space.high))

    def forward(self, observation: PyTorchObs) -> th.Tensor:
        """
        :param observation: ``(batch, *observation shape)``, raw: images are uint8
        :return: Actions ``(batch, *action shape)``
        """
        actions = best_actions(self.policy, observation)
        space = self.policy.action_space
        assert space.shape is not None
        actions = actions.reshape(-1, *space.shape)
        if isinstance(space, spaces.Box):
            if self.policy.squash_output:
                actions = unscale_actions(actions, self.low, self.high)
            else:
                actions = th.minimum(th.maximum(actions, self.low), self.high)
        return actions


def export_policy(model: BaseAlgorithm, path: str | pathlib.Path) -> None:
    """
    Write the acting policy to a file, for any batch size. If that fails, an older file stays as it was.

    Observations are those of ``model.observation_space``, with the channels of images first, wherever the environment
    has them. ``VecNormalize`` is not part of a policy: what it does to observations has to be done before. Nor are the
    masks of ``MaskablePPO``: what is exported may choose any action.

    :param model: Of any algorithm, but not a recurrent one
    :param path: ``*.onnx`` for ONNX, with one input for each key of a ``Dict`` observation (``observation`` otherwise)
        and the output ``action``; ``*.pt2`` for ``torch.export.load``
    :raises ValueError: If the ending is another one, or the policy is recurrent
    :raises ImportError: If a package that ONNX needs is not installed
    """
    path, model = checks.path("path", path), checks.instance("model", model, BaseAlgorithm)
    if path.suffix not in (".onnx", ".pt2"):
        raise ValueError(f"`path` must end in .onnx or .pt2, got {path}")
    if path.suffix == ".onnx" and not (find_spec("onnx") and find_spec("onnxscript")):
        raise ImportError('ONNX needs packages: pip install "sb3-jepa[onnx]"')
    if hasattr(model.policy, "lstm_actor"):
        raise ValueError(f"A recurrent policy cannot be exported, got {type(model.policy).__name__}")
    forget_graphs(model.policy)
    policy = copy.deepcopy(model.policy).to("cpu")
    policy.set_training_mode(False)
    space = policy.observation_space
    # Two of them, for a batch of one would be taken for a constant
    examples = [by_key(space.sample()) for _ in range(2)]
    batch = {key: np.stack([example[key] for example in examples]) for key in examples[0]}
    observation, _ = policy.obs_to_tensor(as_observations(batch))
    any_batch = {0: th.export.Dim.AUTO}
    shapes: Any = {key: any_batch for key in batch} if NO_KEY not in batch else any_batch
    acting = ActingPolicy(policy)
    with _quietly():
        # What is worked out only once is not to be part of it, such as which tokens are constant
        with th.no_grad():
            acting(observation)
        program = th.export.export(acting, (observation,), dynamic_shapes=(shapes,), strict=False)
        with replace_when_complete(path) as unfinished:
            if path.suffix == ".pt2":
                unfinished.write_bytes(in_memory(lambda file: th.export.save(program, file)))
            else:
                names = ["observation"] if NO_KEY in batch else list(batch)
                onnx = th.onnx.export(program, dynamo=True, input_names=names, output_names=["action"], verbose=False)
                assert onnx is not None
                onnx.save(str(unfinished), external_data=False)


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the checks of distributions, which cannot be exported, and without PyTorch's warnings about itself."""
    with without_distribution_checks(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
