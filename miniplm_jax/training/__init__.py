"""The one training loop: teacher, reference, proxy and students alike."""
