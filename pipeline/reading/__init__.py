"""From shards to values: open, find, read, verify."""
