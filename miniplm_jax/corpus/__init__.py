"""Text, or rows packed elsewhere, to a corpus of packed rows.

The way of a document in stage tokenize, from file to file:

  tokenize_step  what is to be done, and its manifest
  sources        which chunks a source has, and whether they are what they were;
                 folders says which files it is
  formats        a file's records as documents. Other chunks are of plain texts
                 (chunks, what all have in common), of Megatron's pairs
                 (megatron), of TFDS and Hugging Face (datasets), of this
                 installation (embedded)
  shard          chunk to shard, in one of many processes (workers)
  tokenizer      text to ids, by fast_bpe where it gives the same; losses is
                 what a tokenizer leaves out, own_tokenizer the corpus's copy
  pack           ids to rows
  store          the corpus on disk; columns is its index

Stage convert goes from rows (convert_step) back to text (convert_text) and to
rows of another tokenizer (convert). What readers of a corpus share: batching,
rows for the device; kept_rows, of a selection; trained_rows, which nothing may
be measured on.
"""
