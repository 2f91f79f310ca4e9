import numpy as np
import pytest
from gymnasium import spaces

from sb3_jepa.pretrain import Recordings

LENGTHS = (30, 5, 12, 8, 20, 25)
NUMBERS = spaces.Box(-np.inf, np.inf, (2,))


def numbered(lengths=LENGTHS) -> Recordings:
    """Episodes whose rows lie between each other, as those of parallel environments do."""
    episodes = np.repeat(np.arange(len(lengths)), lengths)
    np.random.default_rng(0).shuffle(episodes)
    rows = np.arange(len(episodes), dtype=np.float32)
    return Recordings(NUMBERS, np.stack([rows, -rows], axis=1), episodes)


@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.9])
def test_no_episode_is_in_both_parts(fraction):
    recordings = numbered()
    for seed in range(10):
        training, validation = recordings.split(fraction, seed)
        assert np.array_equal(np.sort(np.concatenate([training, validation])), np.arange(len(recordings)))
        assert not set(recordings.episodes[training]) & set(recordings.episodes[validation])
        assert 0 < len(validation) <= fraction * len(recordings)
        # No other episode would have fitted
        left = np.bincount(recordings.episodes[training])
        assert min(left[left > 0]) > fraction * len(recordings) - len(validation)


def test_the_choice_of_episodes_is_that_of_the_seed():
    choices = [tuple(numbered().split(0.3, seed)[1]) for seed in (0, 0, 1, 2, 3)]
    assert choices[0] == choices[1]
    assert len(set(choices)) > 1


def test_the_shortest_episode_is_put_aside_if_all_are_too_long():
    recordings = numbered((40, 30, 50))
    _, validation = recordings.split(0.01)
    assert set(recordings.episodes[validation]) == {1}
    assert recordings.describe() == "120 observations of 3 episodes"
    assert recordings.describe(validation) == "30 observations of 1 episodes"
    assert len(np.unique(recordings.episodes)) == 3


@pytest.mark.parametrize(("n_rows", "n_validation"), [(100, 10), (2, 1), (3, 1)])
def test_a_single_episode_is_split_in_time(n_rows, n_validation):
    recordings = numbered((n_rows,))
    with pytest.warns(UserWarning, match="single episode"):
        training, validation = recordings.split(0.1)
    assert training.tolist() == list(range(n_rows - n_validation))
    assert validation.tolist() == list(range(n_rows - n_validation, n_rows))


def test_something_is_left_to_learn_from():
    with pytest.warns(UserWarning, match="single episode"):
        training, validation = numbered((3,)).split(0.99)
    assert (len(training), len(validation)) == (1, 2)


def test_what_cannot_be_split_is_refused():
    for fraction in (0.0, 1.0, -0.1):
        with pytest.raises(ValueError, match=f"`validation_fraction` must be .* above 0 and below 1, got {fraction}"):
            numbered().split(fraction)
    with pytest.raises(ValueError, match="at least 2 observations, got 1"):
        numbered((1,)).split()


def test_rows_are_copies_of_the_type_of_the_space():
    space = spaces.Dict(vector=NUMBERS, flags=spaces.MultiBinary(3), mode=spaces.Discrete(4))
    observations = dict(vector=np.ones((5, 2)), flags=np.zeros((5, 3), bool), mode=np.arange(5) % 4)
    recordings = Recordings(space, observations, np.zeros(5, dtype=np.int32))
    taken = recordings.take(np.array([3, 0, 3]))
    assert taken["mode"].tolist() == [3, 0, 3]
    for key, one in space.items():
        assert taken[key].shape == (3, *one.shape)
        assert taken[key].dtype == one.dtype
        taken[key][...] = 1
    assert observations["vector"].dtype == np.float64
    assert not observations["flags"].any()


@pytest.mark.parametrize(
    ("space", "observations", "episodes", "message"),
    [
        (NUMBERS, np.zeros((5, 2)), np.zeros(4, int), r"observations must have the shape \(4, 2\).*got \(5, 2\)"),
        (NUMBERS, np.zeros((5, 3)), np.zeros(5, int), r"observations must have the shape \(5, 2\).*got \(5, 3\)"),
        (NUMBERS, np.zeros((5, 2), complex), np.zeros(5, int), "must be of type float32.*got complex128"),
        (spaces.Box(0, 255, (2,), np.uint8), np.zeros((5, 2)), np.zeros(5, int), "must be of type uint8.*got float64"),
        (NUMBERS, np.zeros((5, 2)), np.zeros(5), "`episodes` must hold a whole number.*float64"),
        (NUMBERS, np.zeros((5, 2)), np.zeros((5, 1), int), r"`episodes` must hold.*\(5, 1\)"),
        (spaces.Dict(a=NUMBERS), np.zeros((5, 2)), np.zeros(5, int), r"the keys of `observation_space`, \['a'\]"),
        (spaces.Dict(a=NUMBERS), dict(a=np.zeros((5, 1))), np.zeros(5, int), r"observations\['a'\] must have"),
        (spaces.Text(3), np.zeros(5), np.zeros(5, int), "`observation_space` must be a Box, Discrete"),
    ],
)
def test_what_does_not_fit_the_space_is_refused(space, observations, episodes, message):
    with pytest.raises(ValueError, match=message):
        Recordings(space, observations, episodes)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (dict(actions=np.zeros(5, int)), "`action_space` must be given with `actions`, got None"),
        (dict(action_space=NUMBERS), "`actions` must be given with `action_space`, got None"),
        (dict(action_space=NUMBERS, actions=np.zeros(5)), r"actions must have the shape \(5, 2\).*got \(5,\)"),
        (dict(action_space=NUMBERS, actions=np.zeros((4, 2))), r"actions must have the shape \(5, 2\).*got \(4, 2\)"),
        (dict(action_space=spaces.Discrete(2), actions=np.zeros(5)), "actions must be of type int64.*got float64"),
        (
            dict(action_space=spaces.Dict(a=NUMBERS), actions=np.zeros(5)),
            "`action_space` must be a Box, Discrete, MultiDiscrete or MultiBinary, got",
        ),
        (dict(rewards=np.zeros((5, 1))), r"`rewards` must be None or an array.*\(5,\), got shape \(5, 1\)"),
        (dict(terminated=np.zeros(4, bool)), r"`terminated` must be.*\(5,\), got shape \(4,\)"),
        (dict(has_action=[True] * 5), "`has_action` must be.*got \\[True"),
        (dict(times=np.array(list("abcde"))), "`times` must be.*type <U1"),
    ],
)
def test_actions_and_rewards_that_do_not_fit_are_refused(arrays, message):
    with pytest.raises(ValueError, match=message):
        Recordings(NUMBERS, np.zeros((5, 2)), np.zeros(5, int), **arrays)
