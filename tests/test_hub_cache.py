"""The Hub's files on this machine, shared caches, and an endpoint of one's own behind a proxy and a certificate."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import select
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from nbtune import data, hub_cache, models, system_report
from nbtune.errors import HubError
from nbtune.models import embedded
from nbtune.spec import from_mapping
from tests.support.fake_hub import FakeHub, Repo, client_environment

COMMIT = "0123456789012345678901234567890123456789"


def put(cache: Path, kind: str, repo: str, source: Path, *names: str) -> Path:
    """A repository as huggingface_hub keeps it: blobs, and links to them; the snapshot's folder."""
    folder = cache / f"{kind}s--{repo.replace('/', '--')}"
    made = folder / "snapshots" / COMMIT
    for path in source.iterdir():
        if path.is_file() and (not names or path.name in names):
            blob = folder / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
            blob.parent.mkdir(parents=True, exist_ok=True)
            made.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, blob)
            (made / path.name).symlink_to(os.path.relpath(blob, made))
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    return made


def contents(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.lstat().st_mtime_ns for path in folder.rglob("*")}


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache, empty."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "own"))
    return tmp_path / "own"


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: Path) -> Iterator[Path]:
    """A shared cache with the embedded model in it, and a set; nothing may be written into it."""
    home = tmp_path / "shared"
    monkeypatch.setenv("NBTUNE_SHARED_CACHE", os.pathsep.join([str(tmp_path / "gone"), str(home)]))
    put(home / "hub", "model", "acme/small", embedded.path())
    put(home / "hub", "model", "acme/half", embedded.path(), "config.json", "tokenizer.json")
    rows = tmp_path / "rows"
    rows.mkdir()
    (rows / "train.jsonl").write_text("".join(f'{{"prompt": "{i}?", "completion": "{i}."}}\n' for i in range(5)))
    put(home / "hub", "dataset", "acme/rows", rows)
    before = contents(home)
    yield home
    assert contents(home) == before


def test_a_model_of_a_shared_cache_is_used_and_nothing_is_written(shared: Path, own: Path, tmp_path: Path) -> None:
    folder = models.resolve("acme/small")
    assert folder.is_relative_to(shared)
    assert models.resolve("acme/small", weights=False) == folder
    assert models.missing_bytes("acme/small", 100) == 0
    assert models.load_tokenizer("acme/small").chat_template
    run = nbtune_run("acme/small", tmp_path)
    assert run.state == "finished"
    assert run.export.gguf("q8_0", verify=False)[0].path.exists()
    run.free()
    assert not own.exists()


def nbtune_run(model: str, tmp_path: Path):  # type: ignore[no-untyped-def]
    import nbtune

    return nbtune.finetune(model=model, data="acme/rows", steps=1, runs_dir=tmp_path / "runs").wait()


def test_the_users_own_cache_comes_first(shared: Path, own: Path) -> None:
    mine = put(own, "model", "acme/small", embedded.path())
    assert models.resolve("acme/small") == mine


def test_the_form_offers_what_both_caches_hold(shared: Path, own: Path) -> None:
    from types import SimpleNamespace

    from nbtune.widgets import form

    put(own, "model", "acme/mine", embedded.path())
    plan = SimpleNamespace(device="cpu", peak_bytes=1, available_bytes=2, seconds=1.0, download_bytes=0, total_steps=1)
    plan.rows_of_explanation = lambda: []
    panel = form(lambda spec, rows=None: plan, lambda spec, name, rows: None, {})
    assert panel.setup["models"][:4] == ["nbtune/tiny", "acme/half", "acme/mine", "acme/small"]


def test_what_is_not_whole_in_a_shared_cache_is_not_used(shared: Path, own: Path) -> None:
    assert models.missing_bytes("acme/half", 100) == 100
    with pytest.raises(HubError, match="is not on this machine"):
        models.resolve("acme/half")
    mine = put(own, "model", "acme/half", embedded.path())
    assert models.resolve("acme/half") == mine


def test_rows_of_a_shared_cache(shared: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (source,) = data.resolve(from_mapping({"data": "acme/rows"}).data, {})
    assert [row["completion"] for row in source.load()] == [f"{i}." for i in range(5)]
    assert capfd.readouterr() == ("", "")  # a run's thread never prints


def test_the_doctor_shows_shared_caches(shared: Path, tmp_path: Path) -> None:
    found = system_report.examine(offline=True)
    (gone, there) = [finding for finding in found if finding.topic == "shared cache"]
    assert (gone.status, there.status) == ("problem", "ok")
    assert "2 models and 1 datasets; only read" in there.text
    by_topic = {finding.topic: finding for finding in found}
    assert by_topic["models without a network"].text == "nbtune/tiny and 1 models of the caches"
    assert by_topic["model acme/half"].status == "problem"


@pytest.mark.parametrize("loaded", [False, True])
def test_where_the_users_cache_is(loaded: bool, tmp_path: Path) -> None:
    """The same place that huggingface_hub takes, whether it is imported yet or not."""
    for places in ({"HF_HUB_CACHE": "/a/b"}, {"HF_HOME": "/a"}, {"XDG_CACHE_HOME": "/c"}, {}):
        environ = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "XDG_"))}
        first = "import huggingface_hub.constants as c; " if loaded else ""
        code = (
            f"{first}from nbtune import hub_cache as h; print(h.user_cache()); import huggingface_hub.constants as c; "
        )
        done = subprocess.run(
            [sys.executable, "-c", f"{code}print(c.HF_HUB_CACHE)"],
            env={**environ, **places},
            capture_output=True,
            text=True,
            check=True,
        )
        ours, theirs = done.stdout.split()
        assert ours == theirs


# --- an endpoint of one's own ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An authority's certificate, and a file with key and certificate of hub.acme.test that it has signed."""
    if shutil.which("openssl") is None:
        pytest.skip("certificates are made by openssl")
    folder = tmp_path_factory.mktemp("certificates")
    names = "subjectAltName=DNS:hub.acme.test,DNS:localhost"

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    fresh = ("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl(*fresh, "-x509", "-days", "2", "-subj", "/CN=Acme", "-keyout", "ca.key", "-out", "ca.pem")
    openssl(*fresh, "-subj", "/CN=hub.acme.test", "-keyout", "hub.key", "-out", "hub.csr")
    (folder / "names").write_text(names)
    sign = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names")
    openssl("x509", "-req", "-in", "hub.csr", "-out", "hub.crt", *sign)
    both = folder / "hub.pem"
    both.write_text((folder / "hub.key").read_text() + (folder / "hub.crt").read_text())
    return folder / "ca.pem", both


@contextlib.contextmanager
def inside(certificate: Path) -> Iterator[FakeHub]:
    """A Hub with that certificate and the embedded model in it, at a name that nobody outside its proxy knows."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with FakeHub() as served:
        served.server.socket = context.wrap_socket(served.server.socket, server_side=True)
        files = {path.name: (path.read_bytes(), False) for path in embedded.path().iterdir() if path.is_file()}
        served.repos["acme/small"] = Repo(private=False, branches={"main": files})
        served.endpoint = "https://hub.acme.test"
        yield served


class _Proxy(BaseHTTPRequestHandler):
    target: int
    asked: list[str]

    def do_CONNECT(self) -> None:
        self.asked.append(self.path)
        with socket.create_connection(("127.0.0.1", self.target)) as far:
            self.send_response(200)
            self.end_headers()
            other = {self.connection: far, far: self.connection}
            while True:
                for end in select.select([*other], [], [])[0]:
                    if not (piece := end.recv(65536)):
                        return
                    other[end].sendall(piece)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextlib.contextmanager
def proxy(target: int) -> Iterator[tuple[str, list[str]]]:
    """A proxy that leads to a port of this machine, whatever it is asked for; its address, and what it was asked."""
    asked: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Proxy,), {"target": target, "asked": asked}))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()


RESOLVE = """
import json, os
from nbtune import models
from nbtune.errors import HubError
said = []
for certificates in json.loads(os.environ["TRIED"]):
    os.environ.pop("SSL_CERT_FILE", None)
    os.environ.update(certificates)
    try:
        said.append(sorted(os.listdir(models.resolve("acme/small"))))
    except HubError as error:
        said.append([error.cause, error.fix])
print(json.dumps(said))
"""


def test_an_endpoint_behind_a_proxy_and_a_certificate(certificate: tuple[Path, Path], tmp_path: Path) -> None:
    """What is wrong is said with what helps; once it is done the same process goes on."""
    authority, served_with = certificate
    system = {name: os.environ[name] for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE") if name in os.environ}
    tried = [{}, {"REQUESTS_CA_BUNDLE": str(authority)}, {"SSL_CERT_FILE": str(authority)}]
    with inside(served_with) as served, proxy(served.server.server_address[1]) as (address, asked):
        environ = {key: value for key, value in client_environment(served, tmp_path).items() if key not in system}
        environ |= {"HTTPS_PROXY": address, "https_proxy": address, "TRIED": json.dumps(tried), "HF_HUB_OFFLINE": "0"}
        for name in ("SSL_CERT_FILE", "SSL_CERT_DIR", "NO_PROXY", "no_proxy", "ALL_PROXY", "all_proxy"):
            environ.pop(name, None)
        done = subprocess.run([sys.executable, "-c", RESOLVE], env=environ, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    nothing, elsewhere, named = json.loads(done.stdout)
    assert nothing[0] == elsewhere[0] == "hub.acme.test shows a certificate that this machine does not trust"
    assert nothing[1].startswith("set SSL_CERT_FILE to the file with your organisation's certificates")
    assert elsewhere[1].startswith(f"set SSL_CERT_FILE to {authority} too")
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(named)
    assert set(asked) == {"hub.acme.test:443"}


def test_other_errors_are_no_matter_of_certificates() -> None:
    assert hub_cache.distrusted(OSError("Network is unreachable")) is None


# --- a Hub that does not answer -------------------------------------------------------------------------------------

ASK = """
import json, os
from nbtune import data, models
from nbtune.errors import HubError
from nbtune.spec import from_mapping
said = []
for name in json.loads(os.environ["TRIED"]):
    try:
        if name == "acme/small":
            said.append(sorted(os.listdir(models.resolve(name))))
        else:
            (source,) = data.resolve(from_mapping({"data": {"source": name, **json.loads(os.environ["PART"])}}).data)
            said.append([row["completion"] for row in source.load()])
    except HubError as error:
        said.append(error.cause)
print(json.dumps(said))
"""


def asked(hub: FakeHub, home: Path, *names: str, **part: str) -> tuple[list[object], list[str]]:
    """What comes of names in a process of its own, and the paths that it asked for."""
    hub.requests.clear()
    environ = client_environment(hub, home) | {"TRIED": json.dumps(names), "PART": json.dumps(part)}
    environ |= {"HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0", "HF_HUB_ETAG_TIMEOUT": "1"}
    done = subprocess.run([sys.executable, "-c", ASK], env=environ, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), [path for _, path, _ in hub.requests]


@pytest.mark.parametrize("how", ["drop", "stall", "loris"])
def test_a_hub_that_is_silent_is_asked_once_and_what_was_downloaded_is_used(how: str, tmp_path: Path) -> None:
    """Its libraries ask six times within half a minute, or wait without end, where nothing is cached."""
    files = {path.name: (path.read_bytes(), False) for path in embedded.path().iterdir() if path.is_file()}
    row = b'{"prompt": "a", "completion": "b"}\n'
    with FakeHub() as hub:
        hub.repos["acme/small"] = Repo(private=False, branches={"main": files})
        hub.repos["acme/rows"] = Repo(private=False, branches={"main": {"train.jsonl": (row, False)}})
        hub.repos["acme/rows"].branches["main"]["README.md"] = (b"# Rows\n", False)
        before, _ = asked(hub, tmp_path, "acme/small", "acme/rows")
        assert "config.json" in before[0]  # type: ignore[operator]
        assert before[1] == ["b"]
        for method in ("GET", "HEAD", "POST"):
            hub.fail(method, "", how=how)
        assert asked(hub, tmp_path, "acme/small")[0] == before[:1]
        assert asked(hub, tmp_path, "acme/rows")[0] == before[1:]
        assert asked(hub, tmp_path, "acme/rows", revision="main")[0] == before[1:]
        (said,), paths = asked(hub, tmp_path, "acme/rows", revision="v2")
        assert "it is not on this machine, and the Hub could not be reached" in str(said)
        (said,), paths = asked(hub, tmp_path, "acme/others")
        assert "it is not on this machine, and the Hub could not be reached" in str(said)
        assert paths == ["/api/datasets/acme/others"]
        (said,), _ = asked(hub, tmp_path / "new", "acme/small")
        assert str(said).startswith("acme/small is not on this machine, and the Hub could not be reached")
