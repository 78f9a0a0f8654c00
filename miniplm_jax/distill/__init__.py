"""What a student may minimise beside the next-token loss of its rows."""
