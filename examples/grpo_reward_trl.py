"""GRPO with TRL's own trainer and NAVSIM's score as the reward: no devkit, no map, no server.

python examples/grpo_reward_trl.py out/demo Qwen/Qwen2.5-0.5B-Instruct

A model of language alone, so the prompt tells what the car knows of itself. For a model that sees, take the rows of
`python -m jobs.export out=out/demo to=grpo.jsonl format=trl-grpo`: docs/grpo.md, "The reward elsewhere".
"""

import sys

from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

import last_shards as ls
from trainer.reward_functions import TRLReward


def prompt(document: dict) -> str:
    ego, past = document["ego"], document["history"]["trajectory"]
    return (
        f"Command: {ego['command']}. Speed {ego['velocity'][0]:.2f} m/s. Poses of the last 1.5 s: "
        + " ".join(f"({x:.2f},{y:.2f},{heading:.3f})" for x, y, heading in past[:-1])
        + ". Drive on: 8 poses, 0.5 s apart, as (x,y,heading), in metres and radians from here.\n"
    )


def main(url: str = "out/demo", model: str = "Qwen/Qwen2.5-0.5B-Instruct", out: str = "runs/trl", **config) -> dict:
    samples = ls.Dataset(url, columns=["samples"])
    reward = TRLReward(ls.Reward(url, version="v1"))  # v2 is EPDMS
    documents = {token: samples.read(token, {"samples": ["json"]})["samples"]["json"] for token in samples.tokens()}
    rows = [{"token": token, "prompt": prompt(document)} for token, document in documents.items()]
    human = {
        token: " ".join(f"({x:.2f},{y:.2f},{heading:.3f})" for x, y, heading in document["future"]["trajectory"][:8])
        for token, document in documents.items()
    }
    scores = reward([*human.values()], token=[*human])
    print(f"the human's own drives: {sum(scores) / len(scores):.3f}, the mean of {len(scores)} scenes")

    settings = {"max_completion_length": 256, "num_generations": 8, "max_steps": 100, "logging_steps": 1, **config}
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=[reward],
        args=GRPOConfig(output_dir=out, remove_unused_columns=False, **settings),
        train_dataset=Dataset.from_list(rows),  # TRL hands a row's token to the reward
    )
    trainer.train()
    return next(log for log in reversed(trainer.state.log_history) if "reward" in log)


if __name__ == "__main__":
    print(main(*sys.argv[1:]))
