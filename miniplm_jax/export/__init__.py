"""Stage export: students as Hugging Face directories."""
