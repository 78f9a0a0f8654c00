"""MiniPLM in JAX: distil a language model through its pre-training data.

The folders are the pipeline, in this order:

  core       errors, files, manifests, jobs: no JAX
  models     decoders, their loss, sharding, Hugging Face in and out
  corpus     text to packed rows            (stage tokenize)
  trainer    the one training loop
  reference  pre-train p_ref                (stages teacher and reference)
  score      log-probs of every row         (stage score)
  proxy      a small model of the score     (stage proxy)
  select     Difference Sampling            (stage select)
  materialize  kept rows as files           (stage materialize)
  convert    kept rows in other tokens      (stage convert)
  train      pre-train the student          (stage train)
  evaluate   held-out loss, zero-shot tasks (stage evaluate)
  export     a Hugging Face directory       (stage export)
  generate   what a model writes            (stage generate)
  plan       what a program takes on TPU
  analyse    what all runs say together (stage analyse)
  report     report.html                    (stage report)

A folder imports only from itself and from those above it; main.py and
pipeline.py stand on top.
"""

__version__ = "0.1.0"
