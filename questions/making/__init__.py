"""Questions from the labels of a dataset: what is seen, what it is called, which units are asked."""
