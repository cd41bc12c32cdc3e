"""`python -m jobs.export out=DIR to=FILE [format=ms-swift|trl-sft|trl-grpo|llama-factory|verl|zarr] [columns=[vggt]]`.

A dataset as a file of another trainer's: JSON lines, or Parquet for verl (`exports.rows` shows a row of each).
With ``format=zarr`` the arrays of a dataset that was made with ``zarr: view``, as `targets.zarr` in the folder `to`.
Images lie beside it as files, byte for byte those of the tars. Latents are not copied: a collate function fetches them
by `token` (`pipeline.stream.LatentCollator`), so a row is written only for samples that every column of `columns` has.

    {"messages": [{"role": "user", "content": "<image>\nYou drive the ego vehicle. Speed 4.0 m/s, ..."},
                  {"role": "assistant", "content": "(2.00,0.01,0.002) (4.02,0.05,0.004) ..."}],
     "images": ["/data/train_images/0a1b2c3d4e5f6071.cam_f0.jpg"], "token": "0a1b2c3d4e5f6071"}

Answers are written as the reward reads them. docs/streaming.md and docs/grpo.md show each trainer. The file is in place
when it is whole; exit code 0, 1 (a fault), 2 (config).
"""

from __future__ import annotations

from exports.trajectories import ExportConfig, export, messages
from jobs import config as job_config

__all__ = ["ExportConfig", "export", "main", "messages"]


def main(arguments: list[str]) -> int:
    """Export; returns the exit code."""
    config = job_config.load(ExportConfig, arguments)
    written, left_out = export(config)
    images = "" if config.format == "zarr" else f"; images in {config.image_folder}"
    print(f"{config.to}: {written} samples, {len(left_out)} left out{images}")
    for token, reason in list(left_out.items())[:5]:
        print(f"  left out {token}: {reason}")
    return 0


if __name__ == "__main__":
    job_config.run(main)
