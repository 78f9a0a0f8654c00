"""What a program would need on a TPU, compiled where there is none."""
