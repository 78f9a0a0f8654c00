"""Stage analyze: what all runs of a workdir say together.

Each module but `base` and `step` has an `ANALYSIS`: its definition in words,
`measure` (what the workdir holds → figures that can stand in JSON) and
`render` (figures → table and pictures); `step` runs them all.
"""
