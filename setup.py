"""What pyproject.toml cannot say: the recipes of `configs/` travel in the wheel, as `last_shards/configs`."""

from setuptools import find_packages, setup

ROOMS = [
    "last_shards",
    "shards_schema",
    "pickles",
    "maps",
    "scoring",
    "questions",
    "teachers",
    "pipeline",
    "synthetic",
    "pretraining",
    "trainer",
    "cluster",
    "reports",
    "jobs",
    "navsim_agent",
]

setup(
    packages=[
        *find_packages(include=[pattern for room in ROOMS for pattern in (room, f"{room}.*")]),
        "last_shards.configs",
    ],
    package_dir={"last_shards.configs": "configs"},
)
