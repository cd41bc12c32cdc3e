"""What students say: one protocol (`base`), motions of a vocabulary (`motion`), and waypoints in text (`text`)."""
