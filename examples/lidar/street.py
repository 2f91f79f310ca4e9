"""
Streets that do not exist, as a LiDAR sees them: cars, pedestrians, poles, walls and hedges, of which the rays of
MuJoCo say at each point what they have hit.

    pip install -e ".[zero-shot]"
    python examples/lidar/street.py --folder build/streets --n-sweeps 3000
    python examples/lidar/street.py --folder build/held_out --seed 1 --n-sweeps 500
"""

import argparse
import pathlib

import mujoco
import numpy as np

CLASSES = ("ground", "car", "pedestrian", "pole", "wall", "hedge")
# How many of each there are at most; what is not there lies far away
COUNTS = dict(car=6, pedestrian=8, pole=8, wall=5, hedge=5)
INTENSITY = dict(ground=0.2, car=0.8, pedestrian=0.4, pole=0.6, wall=0.5, hedge=0.3)
SENSOR_HEIGHT, LONGEST_RAY = 1.8, 60.0
FAR_AWAY = 500.0
N_COLUMNS = 360


def _make_model() -> mujoco.MjModel:
    parts = {
        "car": '<geom type="box" size="2.1 0.9 0.35" pos="0 0 0.6"/>'
        '<geom type="box" size="1.1 0.8 0.3" pos="-0.2 0 1.2"/>',
        "pedestrian": '<geom type="capsule" size="0.25 0.55" pos="0 0 0.9"/>'
        '<geom type="sphere" size="0.15" pos="0 0 1.75"/>',
        "pole": '<geom type="cylinder" size="0.1 2.5" pos="0 0 2.5"/>',
        "wall": '<geom type="box" size="4 0.3 2" pos="0 0 2"/>',
        "hedge": '<geom type="ellipsoid" size="2 0.7 0.9" pos="0 0 0.8"/>',
    }
    bodies = "".join(
        f'<body name="{kind}{index}" mocap="true">{parts[kind]}</body>'
        for kind, count in COUNTS.items()
        for index in range(count)
    )
    return mujoco.MjModel.from_xml_string(
        f'<mujoco><worldbody><geom type="plane" size="100 100 1"/>{bodies}</worldbody></mujoco>'
    )


class Street:
    """
    A street with a sensor in its middle.

    :param n_beams: Number of beams above each other
    :param seed: Seed of all that is random
    :param drop_out: Which share of the points is lost
    """

    def __init__(self, n_beams: int = 32, seed: int = 0, drop_out: float = 0.05):
        self.model = _make_model()
        self.data = mujoco.MjData(self.model)
        self.random = np.random.default_rng(seed)
        self.drop_out = drop_out
        heights = np.radians(np.linspace(-25.0, 8.0, n_beams))
        turns = np.linspace(-np.pi, np.pi, N_COLUMNS, endpoint=False)
        height, turn = (grid.flatten() for grid in np.meshgrid(heights, turns, indexing="ij"))
        self.directions = np.stack(
            [np.cos(height) * np.cos(turn), np.cos(height) * np.sin(turn), np.sin(height)], axis=1
        )
        names = [self.model.body(self.model.geom_bodyid[index]).name for index in range(self.model.ngeom)]
        kinds = ["ground" if name == "world" else name.rstrip("0123456789") for name in names]
        self.label_of_geom = np.array([CLASSES.index(kind) for kind in kinds], np.int8)

    @property
    def n_points(self) -> int:
        """Of a sweep at most."""
        return len(self.directions)

    def _place(self) -> None:
        """Other streets: along the x axis, with lanes, pavements and house fronts."""
        body = 0
        for kind, count in COUNTS.items():
            n_there = self.random.integers(count // 3, count + 1)
            for index in range(count):
                x, turn = self.random.uniform(-18, 18), self.random.normal(0, 0.1)
                side = self.random.choice([-1.0, 1.0])
                y = (
                    side
                    * {
                        "car": self.random.choice([3.0, 5.5]),
                        "pedestrian": self.random.uniform(3.5, 10.0),
                        "pole": self.random.uniform(7.0, 8.0),
                        "wall": self.random.uniform(11.0, 16.0),
                        "hedge": self.random.uniform(8.5, 11.0),
                    }[kind]
                )
                if kind == "car" and abs(x) < 4.0:
                    x = np.copysign(4.0 + abs(x), x)
                if kind in ("pedestrian", "hedge"):
                    turn = self.random.uniform(-np.pi, np.pi)
                self.data.mocap_pos[body] = [x if index < n_there else FAR_AWAY, y, 0.0]
                self.data.mocap_quat[body] = [np.cos(turn / 2), 0, 0, np.sin(turn / 2)]
                body += 1

    def sweep(self) -> tuple[np.ndarray, np.ndarray]:
        """
        :return: Points of another street, seen from the sensor, x, y, z and intensity, ``(n_points, 4)``, NaN where
            there is none; and what they have hit, ``(n_points,)``, -1 for nothing
        """
        self._place()
        mujoco.mj_kinematics(self.model, self.data)
        # The car is not always parallel to the street, nor the sensor level
        turn, pitch = self.random.uniform(-np.pi, np.pi), self.random.normal(0, 0.01)
        flat = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
        tilted = np.array([[np.cos(pitch), 0, np.sin(pitch)], [0, 1, 0], [-np.sin(pitch), 0, np.cos(pitch)]])
        seen = self.directions @ (flat @ tilted).T
        n = self.n_points
        hit, distances = np.zeros(n, np.int32), np.zeros(n)
        sensor = np.array([0.0, self.random.uniform(-1.5, 1.5), SENSOR_HEIGHT])
        mujoco.mj_multiRay(
            self.model, self.data, sensor, seen.flatten(), None, 1, -1, hit, distances, None, n, LONGEST_RAY
        )
        there = (hit >= 0) & (self.random.random(n) >= self.drop_out)
        labels = np.where(there, self.label_of_geom[hit.clip(0)], -1).astype(np.int8)
        noisy = distances + self.random.normal(0, 0.02, n)
        of_class = np.array([INTENSITY[kind] for kind in CLASSES])
        intensity = (of_class[labels.clip(0)] * np.exp(-distances / 60) + self.random.normal(0, 0.05, n)).clip(0, 1)
        points = np.concatenate([self.directions * noisy[:, None], intensity[:, None]], axis=1).astype(np.float32)
        points[~there] = np.nan
        return points, labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("build/streets"))
    parser.add_argument("--n-sweeps", type=int, default=3_000)
    parser.add_argument("--n-beams", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    street, all_labels = Street(arguments.n_beams, arguments.seed), []
    (arguments.folder / "velodyne").mkdir(parents=True, exist_ok=True)
    for number in range(arguments.n_sweeps):
        points, labels = street.sweep()
        # As KITTI has them
        points.tofile(arguments.folder / "velodyne" / f"{number:06d}.bin")
        all_labels.append(labels)
    np.savez_compressed(arguments.folder / "labels.npz", labels=np.stack(all_labels))


if __name__ == "__main__":
    main()
