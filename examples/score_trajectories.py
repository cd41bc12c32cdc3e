"""NAVSIM's PDM score of any trajectories, from the column `pdm`: no devkit, no map, no log.

python examples/score_trajectories.py out/demo
"""

import sys

import torch

import last_shards as ls


def main(url: str = "out/demo", version: str = "v1") -> None:
    reward = ls.Reward(url, version=version)
    tokens = reward.tokens[:4]
    samples = ls.Dataset(url, columns=["samples"])
    documents = [samples.read(token, {"samples": ["json"]})["samples"]["json"] for token in tokens]
    human = torch.tensor([d["future"]["trajectory"][:8] for d in documents], dtype=torch.float64)  # [S, 8, 3]
    aside = human + torch.tensor([0.0, 1.0, 0.0])  # the same drive, 1 m to the left
    result = reward.score(tokens, torch.stack([human, aside], dim=1))  # [S scenes, 2 candidates, 8 poses, 3]

    print(f"{'token':18}{'human':>8}{'1 m left':>10}")
    for token, scores in zip(tokens, result.score.tolist(), strict=True):
        print(f"{token:18}{scores[0]:8.3f}{scores[1]:10.3f}")
    for name, values in result.subscores.items():
        print(f"{name:32}{values[:, 0].mean():8.3f}{values[:, 1].mean():10.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
