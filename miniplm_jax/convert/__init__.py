"""Stage convert: the selected rows for a student of another tokenizer."""
