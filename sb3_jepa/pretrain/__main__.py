"""An encoder from observations alone, without a script.

python -m sb3_jepa.pretrain CartPole-v1 --pixels --method dmt-jepa --out runs/encoder
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
from stable_baselines3.common import callbacks
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.utils import get_device
from stable_baselines3.common.vec_env import VecEnv

from sb3_jepa.data.readers import is_env
from sb3_jepa.envs.pixels import make_pixel_vec_env
from sb3_jepa.extractors.files import describe_encoder
from sb3_jepa.objectives import DmtJepa, MaskedPrediction, Salt, TJepa
from sb3_jepa.pretrain.pretraining import pretrain
from sb3_jepa.pretrain.salt import pretrain_salt

METHODS = {"i-jepa": MaskedPrediction, "t-jepa": TJepa, "salt": Salt, "dmt-jepa": DmtJepa}
# Options that apply to environments alone
ENV_OPTIONS = ("pixels", "n_steps", "n_envs", "policy")


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sb3_jepa.pretrain",
        description="Learn an encoder from observations alone. After an interruption, or with more updates, the same "
        "command goes on.",
    )
    parser.add_argument(
        "source", metavar="SOURCE", help="ID of an environment, a file (.npy, .npz), a folder, or minari:ID"
    )
    parser.add_argument("--out", type=pathlib.Path, required=True, metavar="FOLDER", help="of encoder and curves")
    parser.add_argument(
        "--method",
        choices=METHODS,
        required=True,
        help="i-jepa: any observations; t-jepa: vectors and categories; dmt-jepa: images; salt: any, in two stages",
    )
    of_env = parser.add_argument_group("if SOURCE is an environment")
    of_env.add_argument("--pixels", action="store_true", help="see it through its rendered frames")
    of_env.add_argument("--n-steps", type=int, metavar="N", help="observations to record (default: 10000)")
    of_env.add_argument("--n-envs", type=int, metavar="N", help="in parallel (default: 8)")
    of_env.add_argument("--policy", type=pathlib.Path, metavar="PATH", help="a saved model that acts (default: random)")
    of_salt = parser.add_argument_group("if the method is salt")
    of_salt.add_argument("--teacher", type=pathlib.Path, metavar="FOLDER", help="that exists (default: one is learned)")
    parser.add_argument(
        "--updates",
        type=int,
        default=2_000,
        metavar="N",
        help="at most, of salt's stages together (default: %(default)s)",
    )
    parser.add_argument("--initial-encoder", type=pathlib.Path, metavar="PATH", help="to begin with (default: none)")
    parser.add_argument("--batch-size", type=int, default=128, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=1e-3, metavar="X", help="(default: %(default)s)")
    parser.add_argument("--patience", type=int, metavar="N", help="evaluations without progress (default: no end)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--device", default="auto", help="(default: %(default)s)")
    parser.add_argument("--objective-kwargs", type=_json_object, default={}, metavar="JSON", help="of the objective")
    parser.add_argument(
        "--features-extractor-kwargs", type=_json_object, default={}, metavar="JSON", help="of the JepaExtractor"
    )
    return parser


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"must be JSON, got {text!r}: {error}") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"must be a JSON object such as '{{\"embed_dim\": 32}}', got {text!r}")
    return value


def _check_options(options: argparse.Namespace) -> None:
    if options.teacher is not None and options.method != "salt":
        raise ValueError("--teacher is for --method salt")
    try:
        get_device(options.device)
    except RuntimeError as error:
        raise ValueError(f"--device must be one of PyTorch's, got {options.device!r}. {error}") from error
    if not is_env(options.source):
        given = [f"--{name.replace('_', '-')}" for name in ENV_OPTIONS if getattr(options, name)]
        if given:
            raise ValueError(
                f"{', '.join(given)}: only for an environment, and {options.source!r} is none that is known"
            )
    elif options.n_envs is not None and options.n_envs < 1:
        raise ValueError(f"--n-envs must be positive, got {options.n_envs}")


def _make_env(options: argparse.Namespace) -> VecEnv:
    make = make_pixel_vec_env if options.pixels else make_vec_env
    return make(options.source, n_envs=options.n_envs or 8, seed=options.seed)  # type: ignore[operator]


def _pretrain(options: argparse.Namespace, source: Any) -> pathlib.Path:
    kwargs: dict[str, Any] = dict(
        objective_kwargs=options.objective_kwargs,
        features_extractor_kwargs=options.features_extractor_kwargs,
        n_updates=options.updates,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        patience=options.patience,
        seed=options.seed,
        initial_encoder=options.initial_encoder,
        device=options.device,
        progress_bar=sys.stderr.isatty() and callbacks.tqdm is not None,
        **{name: getattr(options, name) for name in ("n_steps", "policy") if getattr(options, name) is not None},
    )
    if options.method == "salt" and options.teacher is None:
        return pretrain_salt(source, options.out, **kwargs)
    if options.teacher is not None:
        kwargs["objective_kwargs"] = dict(options.objective_kwargs, teacher=options.teacher)
    return pretrain(source, options.out, METHODS[options.method], **kwargs)


def main(arguments: Sequence[str] | None = None) -> None:
    """
    The command line.

    :param arguments: By default those of the process
    """
    parser = _make_parser()
    options = parser.parse_args(arguments)
    env: VecEnv | None = None
    try:
        _check_options(options)
        env = _make_env(options) if is_env(options.source) else None
        file = _pretrain(options, options.source if env is None else env)
    # An unknown keyword in the JSON raises a TypeError, and a package that an environment lacks raises Gymnasium's
    except (ValueError, TypeError, ImportError, OSError, gym.error.Error) as error:
        parser.error(str(error))
    finally:
        if env is not None:
            env.close()
    extractor_kwargs = options.features_extractor_kwargs
    if options.initial_encoder is not None:
        extractor_kwargs = describe_encoder(file)["features_extractor_kwargs"]
    print(
        f"Wrote {file}\n"
        f'Load it with sb3_jepa.load_encoder(model, "{file}") into a model with policy_kwargs=dict('
        "features_extractor_class=sb3_jepa.JepaExtractor, "
        f"features_extractor_kwargs={extractor_kwargs})"
    )


if __name__ == "__main__":
    main()
