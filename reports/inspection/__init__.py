"""What `jobs.inspect` says and draws: facts, their text for a terminal, and the pieces of the page."""
