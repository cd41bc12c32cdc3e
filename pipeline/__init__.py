"""Everything between a dataset and a trainer, as plain Python: no Ray, no argv."""
