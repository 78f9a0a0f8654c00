"""Look plan: memory, time and cost on TPUs that are not here."""
