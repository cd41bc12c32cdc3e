"""What `jobs.evaluate` is made of: drivers, accounting, scores, tables, and the page of the worst scenes."""
