"""What benchmarks/registry_scores.py says of its table, in words."""

import json
import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from miniplm_jax.core.errors import UserError
from miniplm_jax.report.page import Table

BEGIN, END = "<!-- tables of the scores -->", "<!-- end of the tables -->"
# Neighbors are alike: errors are taken between blocks of so many tokens.
_BLOCK = 1 << 14


def compare(path: pathlib.Path, made: pa.Table, about: dict) -> list[dict]:
  """How far scores are from those that are published, if made otherwise.

  Args:
    path: what is published, and is about to be replaced.
    made: what is to replace it.
    about: its facts.

  Returns:
    The facts of each comparison, those of earlier ones among them.

  Raises:
    UserError: there is more in it, or it is not of the same rows and weights.
  """
  old = pq.read_table(path)
  then = json.loads(old.schema.metadata[b"registry_scores"])
  hint = "choose another --out, or remove it"
  for length in then["lengths"]:
    before, now = (_of_length(t, length).num_rows for t in (old, made))
    if before > now:
      what = f"{before:,} rows of {length} are published, here are {now:,}"
      raise UserError(what, str(path), hint)
  kept = ("dtype", "device", "jax")
  how = {name: then[name] for name in kept}
  if all(how[name] == about[name] for name in kept):
    return then.get("compared", [])
  columns = ["length", "row_id", "row_hash", "nll_sum", "n_tokens"]
  old, new = old.select(columns), made.select(columns)
  keys, kind = columns[:2], "inner"
  both = old.join(new, keys, join_type=kind, right_suffix="_here")
  found = {name: both[name].to_numpy() for name in both.column_names}
  if then["weights"] != about["weights"] or np.any(
    found["row_hash"] != found["row_hash_here"]
  ):
    raise UserError("other weights or rows are published", str(path), hint)
  off = np.abs(found["nll_sum"] - found["nll_sum_here"]) / found["n_tokens"]
  if not len(off):
    return then.get("compared", [])
  facts = {"rows": len(off), "mean": float(off.mean()), "max": float(off.max())}
  return [*then.get("compared", []), how | facts]


def _of_length(made: pa.Table, length: str) -> pa.Table:
  return made.filter(pc.equal(made["length"], int(length)))


def left(made: pa.Table, length: str, facts: dict) -> str:
  """What share is done of one length, and how long the rest would take."""
  here = _of_length(made, length)
  rows = sum(facts["rows"].values())
  rate = facts["work"]["score/tokens_per_second"]
  rest = (rows - here.num_rows) / rows * facts["tokens"]
  return (
    f"rows of {length}: {here.num_rows / rows:.2%} of {rows:,} are done; at "
    f"{rate:,.0f} tokens/s the rest takes {rest / rate / 60:,.0f} minutes"
  )


def blocks(row_id_R: np.ndarray, domain_R: np.ndarray, most: int) -> np.ndarray:
  """Numbers of runs of neighboring rows of a domain, cut at `most` rows."""
  begins_R = np.ones(len(row_id_R), bool)
  begins_R[1:] = np.diff(row_id_R) != 1
  begins_R[1:] |= domain_R[1:] != domain_R[:-1]
  place_R = np.arange(len(row_id_R))
  start_R = np.maximum.accumulate(np.where(begins_R, place_R, 0))
  return np.cumsum(begins_R | ((place_R - start_R) % most == 0))


def mean(nll_R: np.ndarray, tokens_R: np.ndarray, block_R: np.ndarray):
  """Nats a token, and the standard error between blocks of rows."""
  total = tokens_R.sum(dtype=float)
  found = nll_R.sum(dtype=float) / total
  _, place_R = np.unique(block_R, return_inverse=True)
  off = np.bincount(place_R, nll_R - found * tokens_R)
  if len(off) < 2:
    return found, float("nan")
  spread = np.square(off).sum() * len(off) / (len(off) - 1)
  return found, float(np.sqrt(spread) / total)


def write(path: pathlib.Path, made: pa.Table, about: dict):
  """Tables into the card; what stands around them stays."""
  text = path.read_text() if path.exists() else f"{BEGIN}\n{END}\n"
  before, after = text.split(BEGIN)[0], text.split(END)[1]
  path.write_text(f"{before}{BEGIN}\n\n{_tables(made, about)}\n\n{END}{after}")


def _tables(made: pa.Table, about: dict) -> str:
  """What is done, by length and domain, in Markdown."""
  parts = [
    f"{about['dtype']} on {about['device']} ({about['cores']} cores), jax "
    f"{about['jax']}; weights `{about['weights'][:16]}`, tokenizer "
    f"`{about['tokenizer'][:16]}`."
  ]
  for length, facts in about["lengths"].items():
    did = facts["work"]
    here = _of_length(made, length)
    found = {name: here[name].to_numpy() for name in here.column_names}
    most = max(_BLOCK // int(length), 1)
    block = blocks(found["row_id"], found["domain"], most)
    rows = []
    for domain, all_rows in [*facts["rows"].items(), ("all", 0)]:
      mine = (found["domain"] == domain) | (domain == "all")
      n = int(mine.sum())
      all_rows = all_rows or sum(facts["rows"].values())
      cells = [domain, f"{n:,}", f"{all_rows:,}", f"{n / all_rows:.2%}"]
      if n:
        nll, error = mean(
          found["nll_sum"][mine], found["n_tokens"][mine], block[mine]
        )
        tokens = int(found["n_tokens"][mine].sum())
        spread = f" ± {error:.3f}" if np.isfinite(error) else ""
        cells += [f"{tokens:,}", f"{nll:.3f}{spread}"]
      rows.append(cells + [""] * (6 - len(cells)))
    checked = facts["self_check"]
    parts += [
      f"### Rows of {length}",
      f"{did['seconds']:,.0f} s for {did['tokens']:,} tokens: "
      f"{did['score/tokens_per_second']:,.0f} tokens/s. Corpus "
      f"`{facts['corpus'][:16]}`, rows `{facts['rows_sha256'][:16]}`."
      + (
        f" {checked['rows']} rows scored again: off by at most "
        f"{checked['max_difference']:.1e} nats a token."
        if checked and checked["rows"]
        else ""
      ),
      Table(
        ["domain", "rows", "of", "share", "tokens", "nats a token"], rows
      ).markdown(),
    ]
  for c in about.get("compared", []):
    parts.append(
      f"{c['rows']:,} rows were published before, {c['dtype']} on "
      f"{c['device']}, jax {c['jax']}: nats a token differ by {c['mean']:.1e} "
      f"on average, at most {c['max']:.1e}."
    )
  return "\n\n".join(parts)
