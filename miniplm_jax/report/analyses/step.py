"""Stage analyze: every analysis for which the workdir has inputs."""

import base64
import dataclasses
import importlib
import json

from etils import epath, epy

from miniplm_jax.core import files
from miniplm_jax.core import manifest as manifest_lib
from miniplm_jax.core.log import log, plain
from miniplm_jax.core.step import Policy, Step
from miniplm_jax.core.workdir import MANIFEST, Workdir

with epy.lazy_imports():  # NumPy, SciPy and PyArrow
  from miniplm_jax.report import inventory, page
  from miniplm_jax.report.analyses import base

STAGE = "analyze"
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
        "workdir": lambda: _fingerplain(config, workdir),
      },
      outputs=(folder,),
      summary=f"{', '.join(ANALYSES)} of all that is in {workdir.root}",
      run=lambda inputs: _run(config, workdir),
      policy=Policy(is_view=True, is_host_only=True),
    )
  ]


def _inventory(config, workdir: Workdir):
  return inventory.take(
    workdir,
    {role: getattr(config, role).name for role in ("teacher", "reference")},
    more=[text.partition("=")[0] for text in config.score.more],
    alpha=config.select.ratio or 0.5,
  )


def _fingerplain(config, workdir: Workdir) -> str:
  """A digest of everything in the workdir that an analysis may read."""
  if not (workdir.corpus / MANIFEST).exists():
    return ""  # whoever runs it says so
  manifests = _inventory(config, workdir).manifests()
  return files.digest([manifest.content for manifest in manifests])


def _run(config, workdir: Workdir) -> dict:
  found = _inventory(config, workdir)
  for line in found.left_out:
    log(STAGE, f"left out: {line}")
  written, skipped = {}, {}

  for name in ANALYSES:
    analysis = _analysis(name)
    try:
      figures = analysis.measure(found)
    except base.NoInputs as e:
      skipped[name] = str(e)
      log(STAGE, f"{name} skipped: {e}")
      continue
    for path in _write(workdir.analysis, name, analysis, figures):
      written[path.name] = files.describe(path)
  return {
    "tokenizer": found.corpus.tokenizer,
    "files": written,
    "counts": {
      "students": len(found.students),
      "selections": len(found.selections),
    },
    "details": {"skipped": skipped, "left_out": found.left_out},
  }


def _write(
  folder: epath.Path, name: str, analysis: "base.Analysis", figures
) -> list[epath.Path]:
  """Prints an analysis, and writes its figures and its pictures."""
  section = analysis.section(figures)
  plain(f"\n{analysis.title}. {analysis.definition}\n")
  plain("\n".join([section.table.markdown(), "", *section.notes]))
  paths = [folder / f"{name}.json"]
  files.write_json(paths[0], {"definition": analysis.definition, **figures})
  for i, (picture, _) in enumerate(section.pictures, 1):
    end = f"-{i}" if len(section.pictures) > 1 else ""
    paths.append(folder / f"{name}{end}.png")
    files.write_bytes(paths[-1], base64.b64decode(picture))
  return paths


def sections(config, workdir: Workdir) -> list["page.Section"]:
  """What the analyses say, for the report; and whether they are of old.

  Raises:
    UserError: a file is missing or is not the one that was written.
  """
  manifest = manifest_lib.read(workdir.analysis / MANIFEST)
  if manifest is None:
    return []
  # An earlier version called it analyse, which no message is to say.
  manifest = dataclasses.replace(manifest, stage=STAGE)
  manifest.check_sizes()
  shown = []
  if manifest.inputs["workdir"] != _fingerplain(config, workdir):
    words = "The workdir has changed since they were made: --stages=analyze."
    shown.append(page.Section("Analyses", [words]))
  for name in ANALYSES:
    if (file := f"{name}.json") in manifest.files:
      figures = json.loads(manifest.whole(file).read_text())
      shown.append(_analysis(name).section(figures))
  return shown


def _analysis(name: str) -> "base.Analysis":
  """An analysis; it is imported where it runs."""
  module = importlib.import_module(f"miniplm_jax.report.analyses.{name}")
  return module.ANALYSIS
