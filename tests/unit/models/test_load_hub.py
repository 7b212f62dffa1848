"""The Hugging Face route, against a small hub of our own on localhost."""

import json
import os
import socket
import subprocess
import sys
import textwrap
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tapwb.core.errors import ModelNotFound
from tapwb.models import load_model, save_tiny

COMMIT = "0123456789abcdef0123456789abcdef01234567"

LOAD = textwrap.dedent(
    """
    import json, sys
    from tapwb.core.errors import TapError
    from tapwb.models import load_model
    try:
        loaded = load_model(sys.argv[1], dtype="float32", **json.loads(sys.argv[2]))
    except TapError as error:
        print(json.dumps({"error": type(error).__name__, "message": str(error)}))
    else:
        files = sorted(p.name for p in loaded.info.path.iterdir())
        print(json.dumps({"info": loaded.info.to_json(), "files": files}))
    """
)


class Hub(ThreadingHTTPServer):
    """Serves folders as repositories and remembers what was asked for."""

    def __init__(self, repositories):
        self.repositories = repositories
        self.asked = []
        super().__init__(("127.0.0.1", 0), Pages)

    @property
    def address(self):
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_port}"


class Pages(BaseHTTPRequestHandler):
    """The three kinds of page that a snapshot needs."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        """Answer with the content."""
        self.answer(body=True)

    def do_HEAD(self):
        """Answer with the headers alone."""
        self.answer(body=False)

    def answer(self, body):
        """Find the page."""
        path = self.path.partition("?")[0]
        self.server.asked.append(path)
        for name, folder in self.server.repositories.items():
            if path.startswith(f"/api/models/{name}"):
                siblings = [{"rfilename": p.name, "size": p.stat().st_size} for p in sorted(folder.iterdir())]
                if "/tree/" in path:
                    tree = [{"type": "file", "path": s["rfilename"], "size": s["size"], "oid": "1"} for s in siblings]
                    return self.send(json.dumps(tree).encode(), body)
                return self.send(json.dumps({"id": name, "sha": COMMIT, "siblings": siblings}).encode(), body)
            if path.startswith(f"/{name}/resolve/{COMMIT}/"):
                return self.send((folder / path.rsplit("/", 1)[1]).read_bytes(), body)
        if path == "/":
            return self.send(b"hub", body)
        return self.send(b"{}", body, status=404, headers={"X-Error-Code": "RepoNotFound"})

    def send(self, data, body, status=200, headers=()):
        """Send it as the hub does, with the commit in a header."""
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{hash(data) & 0xFFFFFFFF:x}"')
        self.send_header("X-Repo-Commit", COMMIT)
        for key, value in dict(headers).items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *arguments):
        """Stay quiet."""


@pytest.fixture
def hub(tmp_path):
    """A hub with one tiny model, which has pickle weights and code beside its safetensors."""
    folder = save_tiny("qwen2", tmp_path / "repository")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    (folder / "modeling_x.py").write_text("raise RuntimeError")
    server = Hub({"someone/tiny": folder, "HuggingFaceTB/SmolLM2-135M-Instruct": folder})
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def load_in_fresh_process(model_id, tmp_path, hub_address, **options):
    """The hub library reads its address once, so every load gets its own process."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub_address,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "TAPWB_CACHE_DIR": str(tmp_path / "cache"),
        "TAPWB_HUB": "auto",
        "NO_PROXY": "127.0.0.1",
    }
    environment = {k: v for k, v in environment.items() if k not in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")}
    environment |= options.pop("environment", {})
    run = subprocess.run(
        [sys.executable, "-c", LOAD, model_id, json.dumps(options)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_a_hub_id_loads_with_its_commit_pinned_and_no_unsafe_file_fetched(hub, tmp_path):
    """The revision in the identity is the commit; pickles and Python never leave the hub."""
    result = load_in_fresh_process("someone/tiny", tmp_path, hub.address)
    assert (result["info"]["source"], result["info"]["revision"]) == ("hub", COMMIT)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(result["files"])
    assert not [path for path in hub.asked if path.endswith((".bin", ".py"))]


def test_a_fetched_snapshot_loads_without_the_hub(hub, tmp_path):
    """The second load asks nobody, and gives the same identity."""
    first = load_in_fresh_process("someone/tiny", tmp_path, hub.address)
    n_asked = len(hub.asked)
    offline = {"TAPWB_HUB": "off", "HF_HUB_OFFLINE": "1"}
    second = load_in_fresh_process("someone/tiny", tmp_path, hub.address, environment=offline)
    assert second == first
    assert len(hub.asked) == n_asked


def test_the_default_model_comes_from_the_hub_when_it_answers(hub, tmp_path):
    """PyPI is the second choice."""
    result = load_in_fresh_process("smollm2-135m", tmp_path, hub.address)
    assert result["info"]["source"] == "hub"
    assert result["info"]["quantized_before"] is None
    assert result["info"]["title"] == "SmolLM2 135M Instruct"


def test_a_model_the_hub_does_not_know_is_not_found(hub, tmp_path):
    """With the nearest known name, in one line."""
    result = load_in_fresh_process("someone/smolm2-135m", tmp_path, hub.address)
    assert result["error"] == "ModelNotFound"
    assert "knows no model 'someone/smolm2-135m'" in result["message"]
    assert "Did you mean 'smollm2-135m'?" in result["message"]


def test_a_hub_that_never_answers_costs_the_short_timeout_once(tmp_path):
    """A listening socket that stays silent: about three seconds, then the reason and what can be loaded."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        started_s = time.monotonic()
        result = load_in_fresh_process("someone/tiny", tmp_path, address)
        elapsed_s = time.monotonic() - started_s
    assert result["error"] == "ModelNotFound"
    assert "did not answer within 3." in result["message"]
    assert "Known names: smollm2-135m" in result["message"]
    assert elapsed_s < 40  # the timeout plus the start of an interpreter on a busy machine


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("smolm2-135m", "Did you mean 'smollm2-135m'?"),
        ("someone/TINY-random-llama", "Did you mean 'tiny-random-llama'?"),
        ("zzz", "Known names: smollm2-135m"),
        ("two words", "there is no folder or file"),
        ("./absent", "there is no folder or file"),
    ],
)
def test_an_unknown_name_gets_the_nearest_known_ones(name, hint, own_cache):
    """Also with the hub switched off, which the message says where it matters."""
    with pytest.raises(ModelNotFound) as caught:
        load_model(name)
    assert hint in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "Hugging Face id" in str(caught.value)
    if hint[:8] != "there is":
        assert "switched off (TAPWB_HUB=off)" in str(caught.value)


def test_a_hub_model_with_pickles_only_is_refused_with_the_way_out(hub, tmp_path):
    """The pickles are not even fetched."""
    (hub.repositories["someone/tiny"] / "model.safetensors").unlink()
    result = load_in_fresh_process("someone/tiny", tmp_path, hub.address)
    assert result["error"] == "WeightsRefused"
    assert "allow_pickle=True" in result["message"]
    assert not [path for path in hub.asked if path.endswith(".bin")]
