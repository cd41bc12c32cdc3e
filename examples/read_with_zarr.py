"""Look into a dataset with zarr and pandas alone: no line of ours.

python examples/read_with_zarr.py out/demo
"""

import sys

import numpy as np
import pandas as pd
import zarr


def main(url: str = "out/demo", target: str = "l3_tok12") -> None:
    group = zarr.open_group(f"{url}/targets.zarr", mode="r")
    written = group["vggt/valid"][:] == 1  # one row a planned scene; 0 where it was quarantined or the row is unused
    array = group[f"vggt/{target}"]
    print(f"vggt/{target}: {array.shape} {array.dtype}, axes {array.metadata.dimension_names}")
    features = array[:][written].astype(np.float32)
    print(f"{len(features)} scenes; mean {features.mean():.3f}, std {features.std():.3f}")
    future = group["samples/future"][:][written]  # [scene, step, (x, y, heading)], metres and radians, rear axle now
    print(f"the human ends {future[:, -1, 0].mean():.1f} m ahead on average")

    plan = pd.read_parquet(f"{url}/plan.parquet")
    quarantine = pd.read_parquet(f"{url}/quarantine.parquet")
    print(f"{len(plan)} scenes planned from {plan['log'].nunique()} logs; {len(quarantine)} quarantined")


if __name__ == "__main__":
    main(*sys.argv[1:])
