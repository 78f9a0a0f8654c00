r"""Documents as `score_documents` scores them, and as lm_eval's `hf` model.

  python -m benchmarks.documents --model=DIRECTORY [--documents=50] \
    [--max_length=512] [--texts=FILE.jsonl]

Both take the rolling windows of lm_eval (overlap 0) in float32 on this machine;
`hf` takes its softmax in float64, as its float32 one is 2e-5 nats a token off.
The documents are the first that are long enough for four windows: of the text
that every installation carries, or of --texts. With --overlap they are scored
once more, which says what more context is worth. Needs the extras `eval`
and `parity`, and accelerate. Exit status 1 if a document is off by more than
--tolerance.
"""

import json
import pathlib
import sys
import tempfile
import time

import numpy as np
from absl import app, flags

import miniplm_jax as mp
from miniplm_jax.config import CorpusConfig, ScoreConfig

_MODEL = flags.DEFINE_string("model", None, "A directory.", required=True)
_TEXTS = flags.DEFINE_string("texts", "", "JSON lines with a text.")
_DOCUMENTS = flags.DEFINE_integer("documents", 50, "How many.", 1)
_LENGTH = flags.DEFINE_integer("max_length", 512, "Inputs of a window.", 2)
_OVERLAP = flags.DEFINE_float("overlap", 0.0, "And this share; 0 is none.")
_TOLERANCE = flags.DEFINE_float("tolerance", 1e-3, "Nats, of one document.")


def _documents(tokenizer) -> list[str]:
  if _TEXTS.value:
    with open(_TEXTS.value) as lines:
      texts = [json.loads(line)["text"] for line in lines]
  else:
    from miniplm_jax.corpus import embedded

    chunks = embedded.list_chunks(CorpusConfig())
    records = (record for chunk in chunks for record in chunk.read())
    texts = [record.text for record in records]
  chosen = []
  for text in dict.fromkeys(texts):
    windows = len(tokenizer(text)["input_ids"]) / _LENGTH.value
    if 3 < windows <= 6:
      chosen.append(text)
    if len(chosen) == _DOCUMENTS.value:
      return chosen
  sys.exit(f"only {len(chosen)} documents are long enough")


def main(argv):
  """Prints the largest difference, and what overlap is worth."""
  del argv
  from lm_eval.api.instance import Instance
  from lm_eval.models.huggingface import HFLM

  theirs = HFLM(
    _MODEL.value,
    dtype="float32",
    device="cpu",
    batch_size=8,
    max_length=_LENGTH.value,
    softmax_dtype="float64",
  )
  texts = _documents(theirs.tokenizer)
  with tempfile.TemporaryDirectory() as folder:
    source = pathlib.Path(folder, "text.jsonl")
    source.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    rows = {}
    for overlap in sorted({0.0, _OVERLAP.value}):
      start = time.perf_counter()
      (ours,) = mp.score_documents(
        source,
        {"model": mp.load_model(_MODEL.value, dtype="float32")},
        to=pathlib.Path(folder, str(overlap)),
        score=ScoreConfig(dtype="float32", batch_tokens=4096),
        max_length=_LENGTH.value,
        overlap=overlap,
      ).values()
      seconds = time.perf_counter() - start
      rows[overlap] = ours.to_arrow(), ours.manifest.details["bits_per_byte"]
      print(f"overlap {overlap}: {rows[overlap][1]:.4f} bits per byte")
      print(f"  in {seconds:.0f} s, with compilation", flush=True)
  asked = [
    Instance("loglikelihood_rolling", {}, (text,), 0, metadata=("", 0, 1))
    for text in texts
  ]
  start = time.perf_counter()
  wanted = -np.array(theirs.loglikelihood_rolling(asked, disable_tqdm=True))
  print(f"hf in {time.perf_counter() - start:.0f} s")
  found = rows[0.0][0]["nll_sum"].to_numpy()
  off = np.abs(found - wanted)
  n = rows[0.0][0]["n_tokens"].to_numpy()
  print(
    f"{len(texts)} documents of {n.min():,} to {n.max():,} tokens: off by at "
    f"most {off.max():.2e} nats of {wanted.min():,.0f} to {wanted.max():,.0f}, "
    f"{(off / n).max():.1e} a token"
  )
  sys.exit(0 if off.max() <= _TOLERANCE.value else 1)


if __name__ == "__main__":
  app.run(main)
