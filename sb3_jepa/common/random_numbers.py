"""Code that draws random numbers without a change of those that are drawn after it."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch as th


@contextmanager
def isolated_random_numbers(seed: int | None = None) -> Iterator[None]:
    """
    While it lasts, the global generators of Python, NumPy, and PyTorch (on the CPU and all GPUs) may be used and
    seeded; afterwards they go on where they were. GPUs are left out if CUDA is not in use yet: call
    ``th.cuda.init()`` before, if CUDA is first used within.

    :param seed: Seed of all generators; by default they go on from where they are
    """
    # Asking a GPU for its state would start CUDA, and then this process cannot be forked
    gpus = list(range(th.cuda.device_count())) if th.cuda.is_initialized() else []
    of_python, of_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    with th.random.fork_rng(devices=gpus):
        try:
            if seed is not None:
                random.seed(seed)
                np.random.seed(seed % 2**32)  # noqa: NPY002
                # Not by th.manual_seed, which seeds GPUs too, and for good those that are first used later
                th.default_generator.manual_seed(seed)
                if gpus:
                    th.cuda.manual_seed_all(seed)
            yield
        finally:
            random.setstate(of_python)
            np.random.set_state(of_numpy)  # noqa: NPY002
