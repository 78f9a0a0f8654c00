"""Stage analyze: every analysis for which the workdir has inputs."""

import base64
import dataclasses
import json
import pkgutil
from collections.abc import Mapping, Sequence

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


@dataclasses.dataclass(frozen=True)
class Analyses:
  """All analyses of a workdir, whatever made what it holds."""

  workdir: Workdir
  models: Mapping[str, str]  # names of the config's teacher and reference
  more: Sequence[str]  # NAME=PATH of further models that score
  ratio: float  # that a selection keeps; 0 if it counts rows or tokens

  def step(self) -> Step:
    """The step that makes analysis/."""
    folder = self.workdir.analysis
    return Step(
      stage=STAGE,
      manifest=folder / MANIFEST,
      settings={
        "alpha": self.ratio,
        "models": list(self.models.values()),
        "more": list(self.more),
      },
      inputs={
        "corpus": self.workdir.corpus / MANIFEST,
        "workdir": self._fingerprint,
      },
      outputs=(folder,),
      summary=f"{', '.join(ANALYSES)} of all that is in {self.workdir.root}",
      run=lambda _: self._run(),
      policy=Policy(is_view=True, is_host_only=True),
    )

  def inventory(self) -> "inventory.Inventory":
    """What the workdir holds."""
    return inventory.take(
      self.workdir,
      self.models,
      more=[text.partition("=")[0] for text in self.more],
      alpha=self.ratio or 0.5,
    )

  def sections(self) -> list["page.Section"]:
    """What the analyses say, for the report; and whether they are of old.

    Raises:
      UserError: a file is missing or is not the one that was written.
    """
    manifest = manifest_lib.read(self.workdir.analysis / MANIFEST)
    if manifest is None:
      return []
    # An earlier version called it analyse, which no message is to say.
    manifest = dataclasses.replace(manifest, stage=STAGE)
    manifest.check_sizes()
    shown = []
    if manifest.inputs["workdir"] != self._fingerprint():
      words = "The workdir has changed since they were made: --stages=analyze."
      shown.append(page.Section("Analyses", [words]))
    for name in ANALYSES:
      if (file := f"{name}.json") in manifest.files:
        with manifest.reading(file) as path:
          figures = json.loads(path.read_text())
        shown.append(_analysis(name).section(figures))
    why = manifest.details.get("skipped", {}).items()
    words = [f"{_analysis(name).title}: {text}." for name, text in why]
    left_out = page.Section("Analyses that have too little to go by", words)
    return [*shown, left_out] if words else shown

  def _fingerprint(self) -> str:
    """A digest of everything in the workdir that an analysis may read."""
    if not (self.workdir.corpus / MANIFEST).exists():
      return ""  # whoever runs it says so
    manifests = self.inventory().manifests()
    return files.digest([manifest.content for manifest in manifests])

  def _run(self) -> dict:
    held = self.inventory()
    for line in held.left_out:
      log(STAGE, f"left out: {line}")
    written, skipped = {}, {}
    for name in ANALYSES:
      analysis = _analysis(name)
      try:
        figures = analysis.measure(held)
      except base.NoInputs as e:
        skipped[name] = str(e)
        log(STAGE, f"{name} skipped: {e}")
        continue
      for path in _write(self.workdir.analysis, name, analysis, figures):
        written[path.name] = files.describe(path)
    return {
      "tokenizer": held.corpus.tokenizer,
      "files": written,
      "counts": {
        "students": len(held.students),
        "selections": len(held.selections),
      },
      "details": {"skipped": skipped, "left_out": held.left_out},
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


def _analysis(name: str) -> "base.Analysis":
  """An analysis; it is imported where it runs."""
  return pkgutil.resolve_name(f"miniplm_jax.report.analyses.{name}.ANALYSIS")
