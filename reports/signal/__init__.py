"""The parts of `jobs.signal`: linear probes from targets to what the logs know, beside controls, and checks."""
