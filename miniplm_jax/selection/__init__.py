"""Stage select: Difference Sampling, and seqio's view of what it keeps.

The files:

  selecting  step, selection (who may be kept, and rows.npy), scored (tables and
             index, joined), index, duplicates, cutoff
  files      materialize_step, materialize_writers
  seqio      tasks, source, converter, with_seqio: TensorFlow, only for those
             who ask

What a selection comes to is shown by report/.
"""
