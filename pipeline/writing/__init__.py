"""From logs to shards: the plan, the frames, the worker, and the finalising of a run."""
