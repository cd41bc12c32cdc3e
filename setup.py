"""What pyproject.toml cannot say: every room is installed, and the recipes of `configs/` as `last_shards/configs`."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(exclude=["benchmarks*", "tests*"]), "last_shards.configs"],
    package_dir={"last_shards.configs": "configs"},
)
