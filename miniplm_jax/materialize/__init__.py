"""Stage materialize: the kept rows as files of their own."""
