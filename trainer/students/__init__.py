"""Students: one protocol (`base`), one small enough for a CPU (`tiny`), and any VLM of three families (`hf`)."""
