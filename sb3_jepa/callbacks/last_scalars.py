"""Write out what was recorded after the last rollout."""

from collections.abc import Iterable

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import DISABLED, KVWriter

# Logger outputs that hold tables of numbers, by Stable-Baselines3's names
TABLE_OUTPUTS = ("stdout", "log", "json", "csv")
ALL_OUTPUTS = ("tensorboard", *TABLE_OUTPUTS)
TOTAL_TIMESTEPS = "time/total_timesteps"


def dump_last_scalars(callback: BaseCallback, names: Iterable[str], step: int) -> None:
    """
    Write out what was recorded after the last update: it would otherwise wait for a rollout that never comes. The
    logger keeps it for scripts to read, but does not write it again.

    :param callback: At the end of a training
    :param names: Of the scalars; those that were written before are left out
    :param step: The time step that they belong to
    """
    logger = callback.logger
    names = [name for name in names if logger.name_to_excluded[name] != ALL_OUTPUTS]
    if not names or callback.locals["log_interval"] is None or logger.level == DISABLED:
        return
    # As Stable-Baselines3 does, so that a row of a table says when it was
    values = {**{name: logger.name_to_value[name] for name in names}, TOTAL_TIMESTEPS: step}
    excluded = {**{name: logger.name_to_excluded[name] for name in names}, TOTAL_TIMESTEPS: ("tensorboard",)}
    for output in logger.output_formats:
        if isinstance(output, KVWriter):
            output.write(values, excluded, step)
    for name in names:
        logger.record(name, values[name], exclude=ALL_OUTPUTS)
        # A mean that goes on begins anew
        logger.name_to_count.pop(name, None)
