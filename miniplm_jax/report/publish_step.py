"""Stage publish: score tables for others who have the corpus, without text.

A folder as data sets of the hub are: NAME/scores.parquet of each model with
row_id, the hash of the row's ids, nll_sum and n_tokens; README.md; and the
manifest, which says by what they were made. `scoring/importing.py` takes it.
"""

from collections.abc import Mapping
from typing import Any

from etils import epath, epy

from miniplm_jax.core import files
from miniplm_jax.core import manifest as manifest_lib
from miniplm_jax.core.errors import UserError
from miniplm_jax.core.manifest import Manifest
from miniplm_jax.core.step import Policy, Step
from miniplm_jax.core.workdir import MANIFEST
from miniplm_jax.corpus import datasets, sources
from miniplm_jax.models import hub
from miniplm_jax.report.page import Table

with epy.lazy_imports():
  import huggingface_hub
  import pyarrow as pa
  import pyarrow.parquet as pq

  from miniplm_jax.corpus import store
  from miniplm_jax.report import dataset_card
  from miniplm_jax.scoring import importing, table

STAGE = "publish"
_SCORES = "scores "  # before a table's name, as an input
_FOLDER = "a folder"  # for its path

_USE = """\
Each `NAME/scores.parquet` has a row for each row of D, the rows of a packed
corpus that are selected from: `row_id`, its place in the corpus; `hash`, of its
token ids, uint64; `nll_sum`, Σ −log p in nats; `n_tokens`, over so many tokens.
There is no text and no token here. Whoever has a text can find out whether it
is among the rows.

With the same text, tokenizer and settings, the rows have these hashes, and are
selected from without any model:

```bash
python -m miniplm_jax.main --config=CONFIG --stages=tokenize,score,select \\
  --config.teacher.scores=FOLDER/NAME --config.reference.scores=FOLDER/NAME
```

```python
scores = miniplm_jax.take(corpus, "FOLDER")
kept = scores.select("FORMULA", ratio=0.5, name="mine")
```"""
_LICENSE = """\
TODO: name the licence of these numbers, and in the line `license:` above. That
of the texts, and those of the models, hold for the texts and the models."""


def step(
  tables: Mapping[str, epath.Path], corpus: epath.Path, folder: epath.Path
) -> Step:
  """The step that writes score tables of a corpus, by their names."""
  if not tables:
    raise UserError("there is no score table", str(folder), "score first")
  return Step(
    stage=STAGE,
    manifest=folder / MANIFEST,
    settings={},
    inputs={"corpus": corpus}
    | {_SCORES + name: path / MANIFEST for name, path in tables.items()},
    outputs=(folder,),
    policy=Policy(is_host_only=True),
    summary=f"tables {', '.join(tables)} for others, without text",
    run=lambda inputs: _run(folder, inputs),
  )


def _run(folder: epath.Path, inputs: Mapping[str, Manifest]) -> dict[str, Any]:
  of_corpus = inputs["corpus"]
  tables = {
    name.removeprefix(_SCORES): manifest
    for name, manifest in inputs.items()
    if name.startswith(_SCORES)
  }
  names = {name: f"{name}/{importing.FILE}" for name in tables}
  for manifest in tables.values():
    if "nll_sum" not in manifest.counts:
      hint = "publish those of its teacher and its reference"
      raise UserError("a proxy's table has no nll", str(manifest.path), hint)
  for name, manifest in tables.items():
    _write(folder / names[name], manifest, store.Corpus(of_corpus))
  source = of_corpus.details.get("source", "")
  is_public = datasets.is_named(source) or source == sources.EMBEDDED
  details = {
    "corpus": {
      "fingerprint": of_corpus.fingerprint,
      "tokenizer": of_corpus.tokenizer,
      "tokenizer is": _given(of_corpus, "tokenizer", "trained on this text"),
      "source": source if is_public else "files",
      "settings": of_corpus.settings,
    },
    "models": {name: _model(manifest) for name, manifest in tables.items()},
  }
  # The user's to edit, and so none of the files that are checked.
  if not (card := folder / "README.md").exists():
    files.write_bytes(card, _card(tables, details).encode())
  return {
    "tokenizer": of_corpus.tokenizer,
    "files": {n: files.describe(folder / n) for n in names.values()},
    "counts": {"tables": len(tables)},
    "details": details,
  }


def _write(path: epath.Path, manifest: Manifest, corpus: "store.Corpus"):
  """One table, a part of it at a time."""
  writer = None
  with files.replacing(path) as scratch:
    for part in table.parts(manifest):
      part["hash"] = corpus.hashes[part["row_id"]]
      rows = pa.table(part)
      writer = writer or pq.ParquetWriter(
        scratch, rows.schema, compression="zstd"
      )
      writer.write_table(rows)
    writer.close()


def _given(made: Manifest, name: str, without: str) -> str:
  """The hub id of an input; no path of this machine is named."""
  path = made.details.get(manifest_lib.NAMED, {}).get(name)
  if path is None:
    return without
  is_here = name in made.details.get(manifest_lib.HERE, ())
  return path if hub.may_be_hub_id(path) and not is_here else _FOLDER


def _counted(text: str) -> str:
  """What an n-gram model counts; of files the last name alone."""
  if text in store.SPLITS:
    return f"split {text}"
  return text if datasets.is_named(text) else epath.Path(text).name


def _model(scored: Manifest) -> dict[str, Any]:
  """What is known of the model of a table."""
  details, settings = scored.details, scored.settings
  own = {
    "table": scored.fingerprint,
    "rows": scored.counts["rows"],
    "tokens": scored.counts["tokens"],
  }
  if importing.PUBLISHED in details:  # of which all else is known
    return details[importing.PUBLISHED] | own
  is_given = "scores" in scored.inputs
  without = "made elsewhere" if is_given else "trained on this corpus"
  model, more = _given(scored, "weights", without), {}
  if buckets := settings.get("ngram_buckets"):
    text = _counted(details[manifest_lib.NAMED]["weights"])
    model = f"n-grams of {text} in {buckets:,} buckets"
    more = {"ngram_buckets": buckets}
  return {
    "model": model,
    "revision": "" if model == _FOLDER else details.get("revision", ""),
    "weights": scored.weights,
    "architecture": details.get("architecture"),
    "dtype": settings.get("dtype", ""),
    "int8": settings.get("int8", False),
    "code": scored.code_version,
    **more,
    **own,
  }


def _card(tables: Mapping[str, Manifest], details: Mapping[str, Any]) -> str:
  of_corpus, models = details["corpus"], details["models"]
  rows = next(iter(models.values()))["rows"]
  data = huggingface_hub.DatasetCardData(
    license="unknown",
    pretty_name=f"Score tables: {', '.join(tables)}",
    size_categories=[dataset_card.size_category(rows)],
    tags=["pretraining", "data-selection", "perplexity", "miniplm"],
    configs=[
      {"config_name": name, "data_files": f"{name}/{importing.FILE}"}
      for name in tables
    ],
  )
  facts = {k: v for k, v in of_corpus.items() if k != "settings"}
  facts |= of_corpus["settings"]
  columns = ("model", "revision", "weights", "dtype", "rows", "tokens")
  sections = (
    f"---\n{data.to_yaml()}\n---\n# Score tables: {', '.join(tables)}",
    _USE,
    "## Models",
    "The weights are known by a sha256; manifest.json has all of it.",
    Table(
      ("name", *((c, "," * (c in ("rows", "tokens"))) for c in columns)),
      [(name, *(m[c] for c in columns)) for name, m in models.items()],
    ).markdown(),
    "## Corpus",
    Table(
      ("what", "value"), [(k, f"`{v}`") for k, v in facts.items()]
    ).markdown(),
    "## License",
    _LICENSE,
  )
  return "\n\n".join(sections) + "\n"
