r"""Any checkpoint against transformers: per-token NLL and top-1 agreement.

  python -m benchmarks.parity --model=DIRECTORY_OR_HUB_ID [--texts=my.jsonl]

Takes the first --count texts of a corpus, runs both implementations on each
text's first --max_length tokens, prints the figures and writes them to
parity.json beside the weights. Needs the `parity` extra. Exit status 1 if the
NLL of a token (in bfloat16: the mean NLL) differs by more than --tolerance.

transformers' logits are turned into NLL in float64: its float32 log-softmax
over 50,000 ids is itself 2e-5 off. In float32 XLA's CPU products are 1.5 to 3
times further from float64 than torch's (it sums K terms one after the other),
so a few tokens in 10,000 differ by 1e-4; a wrong model differs by 1e-2.
"""

import platform
import sys

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from etils import epath

from miniplm_jax.config import CorpusConfig
from miniplm_jax.core import errors, files
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.log import Progress, show
from miniplm_jax.corpus import sources, tokenizer
from miniplm_jax.models import head, hub, huggingface, sharding
from miniplm_jax.models.likelihood import matmul_precision

_MODEL = flags.DEFINE_string("model", None, "A directory or hub id.")
_REVISION = flags.DEFINE_string("revision", "main", "Of a hub id.")
_TEXTS = flags.DEFINE_string(
  "texts",
  "embedded",
  "Files with texts (.jsonl, .parquet, …), or the text of this installation.",
)
_COUNT = flags.DEFINE_integer("count", 50, "How many texts.", 1)
_LENGTH = flags.DEFINE_integer("max_length", 512, "Tokens of a text.", 2)
_DTYPE = flags.DEFINE_enum(
  "dtype", "float32", ["float32", "bfloat16"], "Of our computation."
)
_THEIRS = flags.DEFINE_enum(
  "their_dtype",
  "float32",
  ["float32", "float64"],
  "Of transformers: its float32 is up to 1e-4 from its float64.",
)
_TOLERANCE = flags.DEFINE_float(
  "tolerance", None, "Nats; by default 5e-4, in bfloat16 2e-2."
)


def _texts() -> list[str]:
  parts = sources.list_chunks(CorpusConfig(source=_TEXTS.value))
  found = []
  for part in parts:
    for document in part.read():
      if document.text.strip():
        found.append(document.text)
      if len(found) == _COUNT.value:
        return found
  return found


def _ours(model, ids_T, dtype):
  """NLL of each token but the first, and the likeliest id at each."""
  inputs, targets = ids_T[None, :-1], ids_T[None, 1:]
  with matmul_precision(dtype):
    hidden = model(inputs, dtype=dtype)
    vocabulary = model.arch.vocab_size
    nll = head.token_nll(hidden, model.head_VxD, targets, vocabulary)
    best = jax.lax.map(
      lambda h_D: jnp.argmax(
        head.logits(h_D[None], model.head_VxD, vocabulary)[0]
      ),
      hidden[0],
      batch_size=64,
    )
  return nll[0], best


def _theirs(model, ids_T):
  import torch

  with torch.no_grad():
    logits = model(torch.as_tensor(ids_T[None, :-1])).logits[0].double()
    nll = -logits.log_softmax(-1)
    nll = nll[range(len(ids_T) - 1), ids_T[1:].tolist()]
    return nll.numpy(), logits.argmax(-1).numpy()


def compare(directory: epath.Path) -> dict:
  """The figures of the model in a directory."""
  try:
    import torch
    import transformers
  except ImportError as e:
    raise UserError(
      f"{e.name} is not installed",
      "the parity extra",
      "pip install torch==2.13.0 transformers accelerate",
    ) from e

  engine = tokenizer.load_engine(directory)
  mesh = sharding.make_mesh(1, 1, jax.device_count())
  dtype = jnp.dtype(_DTYPE.value)
  model = huggingface.load(directory, mesh)
  theirs = transformers.AutoModelForCausalLM.from_pretrained(
    str(directory), dtype=getattr(torch, _THEIRS.value)
  ).eval()
  ours = jax.jit(_ours, static_argnames="dtype")
  wanted, found, agree = [], [], []
  texts = _texts()
  with (
    jax.set_mesh(mesh),
    Progress("parity", len(texts), "texts") as bar,
  ):
    for text in texts:
      ids = np.asarray(engine.encode(text).ids[: _LENGTH.value], np.int32)
      bar.update(1)
      if len(ids) < 2:
        continue
      # One shape for all: what follows a text changes nothing before it.
      padded = np.zeros(_LENGTH.value, np.int32)
      padded[: len(ids)] = ids
      nll, best = jax.device_get(ours(model, padded, dtype))
      nll, best = nll[: len(ids) - 1], best[: len(ids) - 1]
      their_nll, their_best = _theirs(theirs, ids)
      found.append(nll)
      wanted.append(their_nll)
      agree.append(best == their_best)
  if not found:
    raise UserError(
      "there is no text of two tokens", _TEXTS.value, "give other --texts"
    )
  wanted, found = np.concatenate(wanted), np.concatenate(found)
  difference, agree = np.abs(found - wanted), np.concatenate(agree)
  is_wide = _DTYPE.value == "float32"
  off = difference.max() if is_wide else abs(found.mean() - wanted.mean())
  tolerance = _TOLERANCE.value or (5e-4 if is_wide else 2e-2)
  return {
    "model": str(_MODEL.value),
    "dtype": _DTYPE.value,
    "their_dtype": _THEIRS.value,
    "texts": len(texts),
    "source": _TEXTS.value,
    "tokens": len(difference),
    "nll_max_abs_difference": float(difference.max()),
    "nll_p999_abs_difference": float(np.quantile(difference, 0.999)),
    "nll_mean_abs_difference": float(difference.mean()),
    "nll_mean_ours": float(found.mean()),
    "nll_mean_transformers": float(wanted.mean()),
    "perplexity_ours": float(np.exp(found.mean())),
    "perplexity_transformers": float(np.exp(wanted.mean())),
    "top1_agreement": float(agree.mean()),
    "tolerance": tolerance,
    "passed": bool(off <= tolerance),  # not if it is NaN
    "versions": {
      "jax": jax.__version__,
      "transformers": transformers.__version__,
      "torch": torch.__version__,
      "python": platform.python_version(),
    },
  }


def main(argv: list[str]) -> int:
  """Prints and writes the figures; returns the exit status."""
  show()
  try:
    if len(argv) > 1 or not _MODEL.value:
      raise UserError("no model", "command line", "give --model=DIRECTORY")
    directory = hub.resolve(_MODEL.value, _REVISION.value)
    figures = compare(directory)
    for name, value in figures.items():
      print(f"{name:26} {value}")
    path = directory / "parity.json"
    # JSON has no NaN.
    lost = {k: None for k, v in figures.items() if v != v}
    files.write_json(path, figures | lost)
    print(f"{'written to':26} {path}")
  except (UserError, OSError) as e:
    print(f"error: {errors.one_line(e)}", file=sys.stderr)
    return 1
  return 0 if figures["passed"] else 1


if __name__ == "__main__":
  app.run(lambda argv: sys.exit(main(argv)))
