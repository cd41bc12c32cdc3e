"""Pickles of strangers, read without running anything that they ask for."""
