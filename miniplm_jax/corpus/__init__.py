"""Stage tokenize: text, or rows packed elsewhere, to a corpus of packed rows.

The way of a document, from file to file:

  step        what is to be done, and the manifest of it
  sources     which chunks a source has, and whether they are what they were;
              folders says which files it is
  chunks      a chunk's records: of files (read by formats), of Megatron's
              pairs (megatron), of TFDS and Hugging Face (datasets), of this
              installation (embedded)
  shard       chunk to shard, in one of many processes (workers)
  tokenizer   text to ids, by fast_bpe where it gives the same; losses is what
              a tokenizer leaves out
  pack        ids to rows
  store       the corpus on disk; columns is its index
"""
