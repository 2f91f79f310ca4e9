"""The command line of the report.

python -m sb3_jepa.report RUN_OR_ZIP --env CartPole-v1 --out report.html
"""

import argparse
import pathlib
from collections.abc import Callable, Sequence

import numpy as np
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_jepa.algorithms.saved_models import find_model, load_model
from sb3_jepa.common.files import reading
from sb3_jepa.envs import state_names
from sb3_jepa.envs.for_model import make_env_for
from sb3_jepa.report.curves import read_curves
from sb3_jepa.report.page import write_report

Reader = Callable[[VecEnv], np.ndarray]


def attribute_reader(env: VecEnv, attribute: str | None) -> tuple[Reader | None, list[str] | None]:
    """What reads an attribute of environments, by default their state if it is made of numbers; and names of these."""
    # Some environments have no state before the first reset
    env.reset()
    if attribute is not None and not env.has_attr(attribute):
        raise ValueError(f"The environments have no attribute {attribute!r} for the probe")

    def read(venv: VecEnv) -> np.ndarray:
        return np.array(venv.get_attr(attribute or "state"), dtype=np.float64).reshape(venv.num_envs, -1)

    try:
        values = read(env)
    except (AttributeError, TypeError, ValueError) as error:
        if attribute is not None:
            raise ValueError(
                f"The attribute {attribute!r} of the environments holds no numbers for the probe"
            ) from error
        return None, None
    if attribute is None and not (values.size and np.isfinite(values).all()):
        return None, None
    return read, state_names(env, values.shape[1]) if attribute in (None, "state") else None


def _load_normalization(path: pathlib.Path, env: VecEnv) -> VecNormalize:
    with reading(path, "what VecNormalize.save wrote of such an environment"):
        normalize = VecNormalize.load(str(path), env)
        if not isinstance(normalize, VecNormalize):
            raise TypeError(f"it holds a {type(normalize).__name__}")
    return normalize


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line, with the arguments of the process by default."""
    parser = argparse.ArgumentParser(
        prog="python -m sb3_jepa.report", description="What a saved model has learned, on one page."
    )
    parser.add_argument("run", metavar="RUN_OR_ZIP", type=pathlib.Path, help="a saved model, or a folder with one")
    parser.add_argument("--env", required=True, help="ID of the environment; pixels are drawn if the model takes them")
    parser.add_argument("--curves", type=pathlib.Path, metavar="FOLDER", help="of its training, if they are elsewhere")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("report.html"), help="(default: %(default)s)")
    parser.add_argument("--steps", type=int, default=2000, help="that the model acts (default: %(default)s)")
    parser.add_argument("--horizon", type=int, default=10, help="to unroll the predictor (default: %(default)s)")
    parser.add_argument("--probe", metavar="ATTRIBUTE", help="of the environment (default: its state, if it has one)")
    parser.add_argument("--probe-names", nargs="+", metavar="NAME", help="of what the probe reads")
    parser.add_argument("--algorithm", metavar="MODULE:CLASS", help="if it cannot be guessed")
    parser.add_argument(
        "--vecnormalize", type=pathlib.Path, help="file of VecNormalize.save, if observations were normalized"
    )
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    options = parser.parse_args(arguments)

    try:
        path = find_model(options.run)
        model = load_model(path, options.algorithm)
        model.set_random_seed(options.seed)
        env = make_env_for(model, options.env, seed=options.seed)
        # Do not search below the folder of a single zip: other trainings may lie there
        is_folder = options.curves is not None or options.run.is_dir()
        curves = read_curves(options.curves or (options.run if is_folder else path.parent), below=is_folder)
        if options.vecnormalize is not None:
            env = _load_normalization(options.vecnormalize, env)
            env.training = env.norm_reward = False
        read, names = attribute_reader(env, options.probe)
        write_report(
            model,
            env,
            options.out,
            curves=curves,
            n_steps=options.steps,
            horizon=options.horizon,
            read=read,
            names=options.probe_names or names,
            title=f"{options.env}: {type(model).__name__}, {path}",
        )
    except (ValueError, ImportError, OSError) as error:
        parser.error(str(error))
    print(f"Wrote {options.out}")


if __name__ == "__main__":
    main()
