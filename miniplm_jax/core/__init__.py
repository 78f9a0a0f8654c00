"""What every stage stands on: errors, files, manifests, jobs, progress."""
