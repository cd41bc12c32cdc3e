"""Train on shards with torch: batches, whole epochs, and a state that resumes at the exact next sample.

python examples/read_with_torch.py out/demo
"""

import json
import sys

import torch

import last_shards as ls


def main(url: str = "out/demo", target: str = "l3_tok12") -> None:
    dataset = ls.Dataset(url, columns=["samples", "vggt"])
    spec = dataset.specs("vggt")[target]
    print(f"{target}: {dict(zip(spec.dims, spec.shape, strict=True))}, {spec.meaning}")

    wanted = {"samples": ["json", "cam_f0.jpg"], "vggt": [target]}
    stream = ls.ShardStream(dataset, wanted, ls.StreamConfig(batch_size=2, seed=0))
    model = torch.nn.LazyLinear(2)
    for epoch in range(2):
        stream.set_epoch(epoch)
        for batch in stream.batches():
            features = batch["vggt"][target].float().flatten(1)  # [B, ...] -> [B, everything]
            ends = torch.tensor([sample["future"]["trajectory"][-1][:2] for sample in batch["samples"]["json"]])
            loss = (model(features) - ends).square().mean()  # of the end of the drive, x and y in metres
            loss.backward()
            stream.advance(len(ends) * stream.world_size)  # what all ranks have used
        print(f"epoch {epoch}: {len(stream.tokens)} samples, loss {loss.item():.2f}")

    state = json.dumps(stream.state_dict())  # keep it beside your checkpoint
    stream.load_state_dict(json.loads(state))
    print("resumes at", state)


if __name__ == "__main__":
    main(*sys.argv[1:])
