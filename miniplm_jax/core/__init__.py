"""What every stage stands on: errors, files, manifests, steps, progress."""
