"""The parts of `jobs.fidelity`: what storage choices cost, in bytes, in figures and downstream."""
