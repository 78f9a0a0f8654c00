"""Stage tokenize: text, or rows packed elsewhere, to a corpus of packed rows.

The files:

  sources  readers (files), datasets (TFDS, Hugging Face), embedded, megatron
           (.bin and .idx); records is what they yield
  rows     tokenizer, fast_bpe (the same ids, quicker), pack
  shards   shard (part to shard), workers (processes, Beam), stage; store is
           the corpus on disk
"""
