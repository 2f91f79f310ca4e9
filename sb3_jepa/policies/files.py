"""Saving and loading of a policy, without loss and with errors that name what does not fit."""

import io
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from stable_baselines3.common.policies import BasePolicy

from sb3_jepa.common.files import in_memory, write_file
from sb3_jepa.common.ranks import rank
from sb3_jepa.common.state_dicts import HOW_TO_FIT, find_misfits, warn_if_not_finite

if TYPE_CHECKING:
    _Base = BasePolicy
else:
    _Base = object


class PolicyFiles(_Base):
    """What a policy that learns jointly does in its own way when it is saved and loaded."""

    def save(self, path: str | pathlib.Path | io.BufferedIOBase) -> None:  # type: ignore[override]
        """
        Save model to a given location. If that fails, an older file stays as it was. On several ranks, only the first
        one writes files.

        :param path: Where to save
        """
        if rank() > 0 and isinstance(path, (str, pathlib.Path)):
            return
        warn_if_not_finite(self.state_dict(), "The policy")
        # Stable-Baselines3 says that it takes a path, and takes an open file too
        write_file(path, in_memory(lambda file: super(PolicyFiles, self).save(file)))  # type: ignore[arg-type]

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """
        Copy parameters and buffers from a state dict.

        :param state_dict: As of :meth:`state_dict`
        :param strict: Whether the keys must be those of this policy
        :param assign: See ``torch.nn.Module.load_state_dict``
        :raises ValueError: If strict and keys are missing or unknown (Stable-Baselines3 takes PyTorch's own error for
            the sign of a file older than its 1.7.0, and then goes on with whatever fits); or if a tensor has another
            shape
        """
        own = self.state_dict()
        if not strict:
            state_dict = {name: value for name, value in state_dict.items() if name in own}
            own = {name: own[name] for name in state_dict}
        misfits = find_misfits(state_dict, own, "there", "here")
        if misfits:
            raise ValueError(f"These are the parameters of another policy: {'; '.join(misfits)}. {HOW_TO_FIT}")
        return super().load_state_dict(state_dict, strict=strict, assign=assign)
