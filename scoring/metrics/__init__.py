"""One file a metric, each a pure function of the batch and the paths."""
