"""Stage analyse: what all runs of a workdir say together.

Read `inventory` (what is there), then any of: ranking, stability, domains,
diversity, scaling, savings, ablations. Each has a `DEFINITION` in words, pure
functions, `measure` (inventory → figures that can stand in JSON, or Skipped)
and `section` (figures → table and picture); `step` runs them all.
"""
