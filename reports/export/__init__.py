"""A dataset as files for others: rows of another trainer's, and questions made of its labels."""
