"""From logs to shards: the plan, the frames, the worker, and the books of a run."""
