"""Everything between logs and a trainer, as plain Python: no Ray, no command line."""
