"""Train on shards with webdataset: columns joined by key, every later stage webdataset's own.

python examples/read_with_webdataset.py out/demo
"""

import sys

import webdataset as wds

import last_shards as ls


def main(url: str = "out/demo", target: str = "l3_tok12") -> None:
    pipe = ls.webdataset(url, ["samples", "vggt"], {"samples": ["json"], "vggt": [target]}, shardshuffle=100)
    pipe = pipe.shuffle(1000).to_tuple("__key__", f"vggt.{target}", "samples.json").batched(2, collation_fn=list)
    loader = wds.WebLoader(pipe, batch_size=None, num_workers=0)
    samples = 0
    for batch in loader:
        samples += len(batch)
        token, features, document = batch[0]
        speed = document["ego"]["velocity"][0]
        print(f"{len(batch)} samples; {token}: {target} {features.shape} {features.dtype}, {speed:.1f} m/s")
    print(f"{samples} samples")


if __name__ == "__main__":
    main(*sys.argv[1:])
