"""Hub data sets: streamed once, to the byte, and plain errors where there is no hub."""

import hashlib
import http.server
import socket
import sys
import threading
import time
import types
import urllib.request

import pytest
from sources import refusal

from isoflop.sim.data import HuggingFace
from isoflop.sim.data import huggingface as hub


@pytest.fixture
def datasets(monkeypatch, own_cache):
    """A stand-in for the package `datasets`, over a hub that answers."""
    monkeypatch.setattr(hub, "_reach_hub", lambda dataset: None)
    stand_in = types.ModuleType("datasets")
    stand_in.asked = []

    def load_dataset(*args, **kwargs):
        stand_in.asked.append((args, kwargs))
        return ({"text": f"Document {i}: où?\n", "id": i} for i in range(100))

    stand_in.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", stand_in)
    return stand_in


def test_a_hub_data_set_is_streamed_once_and_to_the_byte(datasets):
    config = HuggingFace(dataset="a/b", config="c", revision="r", text_bytes=1000)
    opened = config.open()
    expected = "\n\n".join(f"Document {i}: où?\n" for i in range(100)).encode()[:1000]
    assert opened.train.tobytes() + opened.held.tobytes() == expected
    assert datasets.asked == [
        (("a/b", "c"), {"split": "train", "revision": "r", "streaming": True})
    ]
    digest = hashlib.sha256(expected).hexdigest()
    assert config.model_copy(update={"digest": digest}).open().digest == digest
    assert len(datasets.asked) == 1
    wrong = config.model_copy(update={"digest": "0" * 64})
    assert "must have the digest 0000" in refusal(wrong.open)


def test_hub_text_is_cut_between_characters(datasets):
    for size in range(100, 130):
        config = HuggingFace(dataset="a/b", text_bytes=size)
        opened = config.open()
        joined = opened.train.tobytes() + opened.held.tobytes()
        joined.decode()
        assert size - 1 <= len(joined) <= size


def test_a_bad_hub_request_is_refused_in_one_line(datasets, monkeypatch):
    assert "ask for fewer" in refusal(HuggingFace(dataset="a/b", text_bytes=10**6).open)
    wrong = HuggingFace(dataset="a/b", field="body", text_bytes=10)
    assert "those there: 'text', 'id'" in refusal(wrong.open)

    def load_dataset(*args, **kwargs):
        raise ValueError('Bad split: "train".\nAvailable splits: test')

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert 'Bad split: "train"' in refusal(HuggingFace(dataset="a/b").open)


def test_a_missing_hub_package_names_the_extra(own_cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "pip install isoflop[hf]" in refusal(HuggingFace(dataset="a/b").open)


@pytest.fixture
def endpoint(monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        yield server


def test_an_unreachable_hub_is_known_at_once(endpoint, monkeypatch):
    began = time.monotonic()
    assert "cannot be reached" in refusal(hub._reach_hub, "a/b")
    endpoint.listen()  # connects, and never answers
    monkeypatch.setattr(hub, "HUB_SECONDS", 0.3)
    assert "cannot be reached" in refusal(hub._reach_hub, "a/b")

    def slow_name_server(*args, **kwargs):
        time.sleep(1)
        raise OSError

    monkeypatch.setattr(urllib.request, "urlopen", slow_name_server)
    assert "no answer in 0.3 s" in refusal(hub._reach_hub, "a/b")
    assert time.monotonic() - began < 1.5


def test_offline_mode_is_an_error_that_says_so(endpoint, monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "unset it" in refusal(hub._reach_hub, "a/b")


@pytest.mark.parametrize("status", [200, 404])
def test_a_hub_that_answers_is_reachable(endpoint, monkeypatch, status):
    class Answer(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(status)
            self.end_headers()

        def log_message(self, *args):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as server:
        constants = pytest.importorskip("huggingface_hub.constants")
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        hub._reach_hub("a/b")
        thread.join()
