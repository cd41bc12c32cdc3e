"""Datasets on disk, turned into `shards_schema.records.Scene`s. One file a source, one protocol (`base`)."""
