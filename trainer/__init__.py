"""The slim consumer: shards in, a driving policy out. Masks, students, losses and the two supervised stages."""
