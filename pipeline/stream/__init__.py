"""From shards to a trainer: an order, dealt to ranks and workers, read ahead in threads, resumed from one number.

    dataset = Dataset("out/demo", columns=["samples", "vggt"])
    stream = ShardStream(dataset, {"samples": ["json"], "vggt": ["l3_grid"]}, StreamConfig(batch_size=8))
    for epoch in range(3):
        stream.set_epoch(epoch)
        for batch in stream.batches():
            ...
            stream.advance(8 * stream.world_size)

`ShardStream` and `Mixture` are torch IterableDatasets, `SampleTable` is a map-style one, `LatentCollator` adds latents
to the batches of somebody else's trainer. docs/streaming.md shows each in the trainers that people use.
"""

from pipeline.reading.reader import Dataset
from pipeline.stream.base import Stream
from pipeline.stream.collate import Collate, LatentCollator
from pipeline.stream.config import StreamConfig
from pipeline.stream.mixture import Mixture
from pipeline.stream.shards import SampleTable, ShardStream

__all__ = ["Collate", "Dataset", "LatentCollator", "Mixture", "SampleTable", "ShardStream", "Stream", "StreamConfig"]
