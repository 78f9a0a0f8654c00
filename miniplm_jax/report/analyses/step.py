"""Stage analyse: every analysis for which the workdir has inputs."""

import base64
import importlib
import json

from miniplm_jax.core import files
from miniplm_jax.core import manifest as manifest_lib
from miniplm_jax.core.log import log, plain
from miniplm_jax.core.step import Step
from miniplm_jax.core.workdir import MANIFEST, Workdir

STAGE = "analyse"
# Modules of this folder, in the order in which they are shown.
ANALYSES = (
  "seeds",
  "ablations",
  "savings",
  "scaling",
  "ranking",
  "stability",
  "domains",
  "diversity",
)


def steps(config, workdir: Workdir) -> list[Step]:
  """One step: analysis/, of all that the workdir holds, whatever made it."""
  folder = workdir.analysis
  return [
    Step(
      stage=STAGE,
      manifest=folder / MANIFEST,
      settings={
        "alpha": config.select.ratio,
        "models": [getattr(config, r).name for r in ("teacher", "reference")],
        "more": list(config.score.more),
      },
      inputs={
        "corpus": workdir.corpus / MANIFEST,
        "workdir": lambda: _fingerprint(config, workdir),
      },
      outputs=(folder,),
      summary=f"{', '.join(ANALYSES)} of all that is in {workdir.root}",
      run=lambda inputs: _run(config, workdir),
      is_host_only=True,
      is_view=True,
    )
  ]


def _fingerprint(config, workdir: Workdir) -> str:
  """Of everything in the workdir that an analysis may read."""
  if not (workdir.corpus / MANIFEST).exists():
    return ""  # whoever runs it says so
  from miniplm_jax.report.analyses import inventory

  found = inventory.take(config, workdir)
  return files.digest([made.content for made in found.manifests()])


def _run(config, workdir: Workdir) -> dict:
  from miniplm_jax.report import page
  from miniplm_jax.report.analyses import inventory

  found = inventory.take(config, workdir)
  for line in found.left_out:
    log(STAGE, f"left out: {line}")
  described, skipped = {}, {}

  def written(path):
    described[path.name] = files.describe(path)

  for name in ANALYSES:
    analysis = _module(name)
    try:
      figures = analysis.measure(found)
    except inventory.Skipped as e:
      skipped[name] = str(e)
      log(STAGE, f"{name} skipped: {e}")
      continue
    section = analysis.section(figures)
    plain(f"\n{analysis.TITLE}. {analysis.DEFINITION}\n")
    plain("\n".join([page.markdown_table(*section.table), "", *section.notes]))
    path = workdir.analysis / f"{name}.json"
    files.write_json(path, {"definition": analysis.DEFINITION, **figures})
    written(path)
    for i, (picture, _) in enumerate(section.pictures, 1):
      end = f"-{i}" if len(section.pictures) > 1 else ""
      path = workdir.analysis / f"{name}{end}.png"
      files.write_bytes(path, base64.b64decode(picture))
      written(path)
  return {
    "tokenizer": found.corpus.tokenizer,
    "files": described,
    "counts": {
      "students": len(found.students),
      "selections": len(found.selections),
    },
    "details": {"skipped": skipped, "left_out": found.left_out},
  }


def sections(config, workdir: Workdir) -> list:
  """What was found, for the report; says so if the workdir has changed.

  Raises:
    UserError: a file is missing or is not the one that was written.
  """
  from miniplm_jax.report import page

  made = manifest_lib.read(workdir.analysis / MANIFEST)
  if made is None:
    return []
  made.check_sizes()
  old = []
  if made.inputs["workdir"] != _fingerprint(config, workdir):
    words = "The workdir has changed since they were made: --stages=analyse."
    old = [page.Section("Analyses", [words])]
  return old + [
    _module(name).section(json.loads(made.whole(f).read_text()))
    for name in ANALYSES
    if (f := f"{name}.json") in made.files
  ]


def _module(name: str):
  """An analysis; it is imported where it runs."""
  return importlib.import_module(f"miniplm_jax.report.analyses.{name}")
