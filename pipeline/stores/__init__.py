"""Bytes on disk: a volume (any fsspec URL), the tar and Zarr writers on it, and the commit that makes them a shard."""
