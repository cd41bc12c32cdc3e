"""Questions about a scene: what a unit is, who makes units, how answers are scored (docs/questions.md)."""
