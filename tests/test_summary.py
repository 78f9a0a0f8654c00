"""What stage tokenize says of a corpus when it has made it."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from etils import epath

from miniplm_jax.config import CorpusConfig
from miniplm_jax.corpus import summary


def said(folder, capsys, lines, **options):
  """Its words about rows of (domain, split, tokens), in two index files."""
  paths = []
  for i in range(2):
    domain, split, tokens = zip(*lines[i::2])
    paths.append(epath.Path(folder / f"{i}.parquet"))
    columns = {"domain": domain, "split": split, "n_tokens": tokens}
    pq.write_table(pa.table(columns), str(paths[-1]))
  counts = {"documents": 7, "rows": len(lines)}
  counts["tokens"] = sum(n for *_, n in lines)
  summary.say("tokenize", CorpusConfig(**options), paths, counts)
  return capsys.readouterr().out.splitlines()


def test_rows_and_tokens_are_said_by_domain_and_split(tmp_path, capsys):
  rng = np.random.default_rng(0)
  lines = [
    (str(d), str(s), int(n))
    for d, s, n in zip(
      rng.choice(["code", "mail"], 2000, p=[0.7, 0.3]),
      rng.choice(["train", "heldout"], 2000),
      rng.integers(2, 99, 2000),
    )
  ]
  out = said(tmp_path, capsys, lines)
  assert "7 documents are 2,000 rows" in out[0] and len(out) == 5
  assert out[1].split()[1:] == ["rows", "(tokens)", "train", "heldout"]
  for line, names in zip(out[2:], (["code"], ["mail"], ["code", "mail"])):
    for split, cell in zip(("train", "heldout"), line.split("  ")[-2:]):
      own = [n for d, s, n in lines if d in names and s == split]
      assert cell.strip() == f"{len(own):,} ({sum(own):,})"


@pytest.mark.parametrize("split_field", ["", "split"])
def test_what_few_would_want_is_warned_of(tmp_path, capsys, split_field):
  few = [("a", "train", 9)] * 1998 + [("b", "heldout", 9)] * 2
  *_, one, two = said(tmp_path, capsys, few, split_field=split_field)
  assert "warning: held-out rows are few to measure on, 2: " in one
  assert one.endswith(
    "more text" if split_field else "=0.1 makes them about 200"
  )
  assert "no held-out row is of domain a" in two
  assert ("warning" in two) == (not split_field)  # what documents say is meant
  (line,) = said(tmp_path, capsys, [("a", "train", 9)] * 2, heldout_share=0.0)[
    4:
  ]
  assert "warning: all rows are of one domain, 'a'" in line
  assert "domain_field, which is 'domain'" in line
