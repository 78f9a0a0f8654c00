"""The one training loop, of teacher, reference and students."""
