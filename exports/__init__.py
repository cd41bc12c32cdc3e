"""A dataset as files for others: rows of another trainer, and questions made of its labels."""
