"""Decoders: their shapes, parameters, losses, sharding and file format.

  architecture  shapes, as sections of the config, and those with a name
  decoder       embedding, layers and norm: of whole rows, or with a cache
  transformer   a family: layers, cache, and how its parameters lie on a mesh
                and in a file; attention, by splash on TPUs and cudnn on GPUs
  mamba         another one; ops is what both are made of
  vocab_loss    the engine of losses over the vocabulary, whose tiles are in
                head (next token) and vocab_tiles (a teacher's labels)
  head          log-probs of tokens; likelihood, of rows and batches
  sparse_labels a teacher's likeliest or sampled ids
  generation    the decode loop, with weights made ready
  sharding      the mesh; placement, rows through a program on it
  huggingface   weights in and out; config_json, hub and int8
  ref           a model that a step reads
  regressor     a number for a row instead of logits

A new family is its shape in architecture.py, a file of its own, and an entry
of `FAMILIES` in each of architecture.py, decoder.py and config_json.py.
"""
