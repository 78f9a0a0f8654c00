"""Stage select: Difference Sampling, and the refined corpus as seqio."""
