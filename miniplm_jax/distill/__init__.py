"""What a student may minimize beside the next-token loss of its rows."""
