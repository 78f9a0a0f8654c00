"""Stage select: Difference Sampling, its report, and seqio's view of it.

The files:

  selecting  step, scored (tables and index, joined), index, definitions,
             moments, candidates (who may be kept), duplicates, noise, cutoff,
             writing (rows.npy)
  reporting  view (a step of its own), summary, copies, overlap, agreement;
             tables, figures, card (report.html), dataset_card (card.md)
  files      materialize_step, materialize_writers
  seqio      tasks, source, converter: TensorFlow, only for those who ask
"""
