"""The libraries that `benchmarks.reading` holds against each other: each writes the same samples, and reads them."""
