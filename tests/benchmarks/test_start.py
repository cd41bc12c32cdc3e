"""What `python -m benchmarks start` writes is a dataset that the trainer reads (its runs are left to the benchmark)."""

from __future__ import annotations

from pathlib import Path

from benchmarks.start import SPEC, TARGET, Config, write_samples
from pipeline.reading.reader import Dataset
from trainer.data import DataConfig, ExampleMaker
from trainer.latents import TargetConfig
from trainer.splits import split_by_log


def test_the_dataset_is_one_that_the_trainer_reads(tmp_path: Path) -> None:
    config = Config(samples=2000)
    write_samples(tmp_path, config)
    dataset = Dataset(str(tmp_path), columns=["samples", "noise"])
    train, held = split_by_log(dataset, config.held_out)
    assert len(train) + len(held) == config.samples
    maker = ExampleMaker(dataset, DataConfig(), dict.fromkeys(("wm", "geo"), TargetConfig.model_validate(TARGET)))
    example = maker.read(held[0])
    assert example.images.shape == (1, 3, config.image[1], config.image[0])
    assert example.targets["wm"].shape == (8, SPEC.fixed_shape[-1])
    future, _ = maker.drives(train[:64])
    assert len(future.flatten(1).unique(dim=0)) > 60  # of which a vocabulary of motions can be made
