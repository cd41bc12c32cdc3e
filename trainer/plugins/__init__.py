"""Files for other trainers' plug-in options; each is read by its library, and imports it."""
