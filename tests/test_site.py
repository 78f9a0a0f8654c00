"""The site of docs/, and what others read of the repository's own files."""

import html.parser
import pathlib
import subprocess
import sys
import urllib.parse

import pytest
from helpers import ROOT, environment, rules

import miniplm_jax as mp

pytestmark = pytest.mark.long  # seconds, but make test has no need of them


class Page(html.parser.HTMLParser):
  """The places of a page, its links, and what it would fetch."""

  def __init__(self, path: pathlib.Path):
    super().__init__()
    self.ids, self.links, self.fetched = set(), [], []
    self.feed(path.read_text())

  def handle_starttag(self, tag, attrs):
    """Takes note of a tag."""
    attrs = dict(attrs)
    self.ids |= {attrs.get("id"), attrs.get("name")}
    if tag == "a" and "href" in attrs:
      self.links.append(attrs["href"])
    if tag in ("img", "script", "link"):
      self.fetched.append(attrs.get("src") or attrs.get("href") or "")


def test_the_site_is_whole(tmp_path):
  """It builds without a warning, its links hold, nothing is from elsewhere."""
  subprocess.run(
    [sys.executable, "-m", "mkdocs", "build", "-sd", tmp_path],
    check=True,
    cwd=ROOT,
    env=environment() | {"NO_MKDOCS_2_WARNING": "1"},
    timeout=300,
  )
  pages = {path.resolve(): Page(path) for path in tmp_path.rglob("*.html")}
  seen = 0
  for path, page in pages.items():
    if path.name == "404.html":  # its links are of the server's root
      continue
    for link in page.links + page.fetched:
      to = urllib.parse.urlsplit(link)
      if to.scheme or to.netloc:
        assert link in page.links or to.scheme == "data", (path, link)
        continue
      target = (path.parent / to.path).resolve() if to.path else path
      assert target.exists(), (path, link)
      if to.fragment and target in pages:
        mark = urllib.parse.unquote(to.fragment)
        assert mark in pages[target].ids, (path, link)
      seen += 1
  assert seen > 1000
  functions = pages[tmp_path / "reference" / "functions.html"].ids
  made = pages[tmp_path / "reference" / "artifacts.html"].ids
  named = {name.rpartition(".")[2] for name in functions | made if name}
  assert set(mp.__all__) - {"presets", "RunConfig"} <= named
  text = (tmp_path / "reference" / "config.html").read_text()
  assert "rows of one step, over all devices" in text
  for name, _ in rules():
    assert f">{name.rpartition('.')[2]}</code>" in text, name


@pytest.mark.parametrize(
  "schema, pattern",
  [
    ("citation-file-format", "CITATION.cff"),
    ("github-workflows", ".github/workflows/*.yml"),
    ("github-issue-forms", ".github/ISSUE_TEMPLATE/[!c]*.yml"),
    ("github-issue-config", ".github/ISSUE_TEMPLATE/config.yml"),
  ],
)
def test_forms_are_what_their_readers_take(schema, pattern):
  files = sorted(ROOT.glob(pattern))
  assert files
  checker = [sys.executable, "-m", "check_jsonschema"]
  subprocess.run(
    [*checker, "--builtin-schema", f"vendor.{schema}", *files], check=True
  )


def test_the_version_is_one():
  """In the package, in the changelog, in the citation."""
  changes = (ROOT / "CHANGELOG.md").read_text()
  assert f"\n## {mp.__version__}, " in changes
  assert f"\nversion: {mp.__version__}\n" in (ROOT / "CITATION.cff").read_text()
