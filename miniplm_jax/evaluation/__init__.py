"""Stage evaluate: held-out loss of students, teacher and reference."""
