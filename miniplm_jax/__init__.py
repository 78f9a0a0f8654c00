"""MiniPLM in JAX: distil a language model through its pre-training data.

The folders are the pipeline, in this order:

  core          errors, files, manifests, steps, claims: no JAX
  models        decoders, their losses, sharding, Hugging Face in and out
  corpus        text to packed rows; kept rows in other tokens
                                                 (stages tokenize, convert)
  training      the one training loop            (stages teacher, reference,
                                                 train)
  scoring       log-probs of every row           (stage score; look verify)
  selection     Difference Sampling; kept rows as files, and for seqio
                                                 (stages select, materialize)
  distillation  what a student minimizes, and what that needs: a small model
                of the score, rows that the teacher continues, its
                distributions                    (stages proxy, seqkd, logits)
  evaluation    held-out loss, zero-shot tasks, log-probs and continuations of
                texts; whole documents           (stages evaluate,
                                                 score_documents; look generate)
  hf_export     a Hugging Face directory         (stage export)
  report        pages, cards, tables, pictures: everything that renders, and
                what all runs say together       (stages report, analyze,
                                                 compare, publish)
  forecast      what a program takes on a TPU    (look plan)
  api           all of it as functions of values, see below

A folder imports only from itself and from those above it; main.py, pipeline.py
and dry_run.py stand on top, and stages.py, which composes the steps of each
stage from the config, with trainings.py for what a run trains and staged.py for
what is trained in stages. The steps of stage X are in the file X_step.py of its
folder.
methods.py is the list of methods and objectives, criteria/ has the ways to rank
rows: formulas, and names for some.

Words, each for one thing:

  document     a text of the source, with its domain
  domain       where a document is from: code, mail, …; "" if nobody says
  row          a packed instance of the corpus: up to max_length + 1 ids that
               end at a sentence's end; the paper's x, scored and kept whole
  row_id       its number in the corpus, which is its order on disk
  D            the rows that are scored and selected: the split "train"
  split        where a row belongs, by the hash of its content or as its
               documents say: D, D_ref ("reference"), held out, the teacher's
  chunk        a piece of a source: what becomes one shard
  shard        a file of rows that was made from a chunk of the source
  part         a piece of a score table or of labels: what one worker makes at
               a time
  teacher      the large model p that is distilled
  reference    the small model p_ref that was trained on D_ref
  student      the model that is pre-trained on what was selected
  score table  Σ −log p of each row under one model, and its tokens
  criterion    how tables become one number for each row, select.definition:
               mean_diff is the paper's log p − log p_ref for each token
  budget       how much of D is kept: a ratio, rows or tokens
  selection    the kept rows' ids, rows.npy
  labels       what a model said of each token of kept rows (stage logits)
  method       a selection and an objective: what makes a student
  objective    what training minimizes
  step         what a stage makes in one folder, from inputs and settings; one
               of the optimizer is a training step
  manifest     the file that says that a step is done, of what, and with what
  fingerprint  sha256 of what decides a result
  claim        who makes a folder at the moment
"""

__version__ = "0.1.0"

# What `import miniplm_jax as mp` has, see docs/api.md. The rest of the package
# is imported when one of them is first asked for: `import` itself is quick.
__all__ = [
  "Corpus",
  "RunConfig",
  "Scores",
  "Selection",
  "Student",
  "UserError",
  "compare",
  "divergence",
  "evaluate",
  "export",
  "generate",
  "load_model",
  "ngram",
  "nll",
  "open_artifact",
  "presets",
  "publish",
  "run",
  "score",
  "score_documents",
  "select",
  "show_log",
  "take",
  "tokenize",
  "train",
]


def __getattr__(name: str):
  if name not in __all__:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  from miniplm_jax import api

  return getattr(api, name)


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__})
