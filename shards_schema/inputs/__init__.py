"""What comes from outside: paths and URLs, documents of strangers, refusals, and what a failed read says."""
