"""Stage train: pre-train the students on what was selected."""
