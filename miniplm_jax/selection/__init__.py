"""Stage select: Difference Sampling, and seqio's view of what it keeps.

The files:

  selecting  step, selection (the function), scored (tables and index, joined),
             index, moments, candidates (who may be kept), duplicates, cutoff,
             writing (rows.npy)
  files      materialize_step, materialize_writers
  seqio      tasks, source, converter: TensorFlow, only for those who ask

What a selection comes to is shown by report/.
"""
