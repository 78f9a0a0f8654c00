"""SeqKD: rows that the teacher goes on with, for a student to train on."""
