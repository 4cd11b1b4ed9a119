"""A small server with as much of vLLM's HTTP interface as drawing completions takes, and plain PEFT behind it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Any

import torch


class Served:
    """A base model, and the adapters that were loaded: each is asked by its name."""

    def __init__(self, base: Path) -> None:
        from transformers import AutoModelForCausalLM

        self.base = AutoModelForCausalLM.from_pretrained(base).eval()
        self.adapters: dict[str, Any] = {}
        self.loaded: list[str] = []
        self.asked: list[dict[str, Any]] = []
        self.lock = Lock()
        self.refuses_after: int | None = None
        """So many completions are drawn, and then none."""
        self.url = ""

    def load(self, name: str, folder: str) -> None:
        from copy import deepcopy

        from peft import PeftModel

        assert name not in self.loaded, "vLLM keeps what it computed by the name"
        self.adapters[name] = PeftModel.from_pretrained(deepcopy(self.base), folder).eval()
        self.loaded.append(name)

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        return self.drawn(self.adapters[body["model"]], body)

    @staticmethod
    def drawn(model: Any, body: dict[str, Any]) -> dict[str, Any]:
        """Return what an adapter answers to a request: the same each time."""
        ids = list(body["prompt"])
        generator = torch.Generator().manual_seed(body["seed"])
        # The model's own end token, unless it is told otherwise
        ends = {*body["stop_token_ids"], *([] if body.get("ignore_eos") else [model.config.eos_token_id])}
        new: list[int] = []
        told: list[float] = []
        while len(new) < body["max_tokens"]:
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([ids + new])).logits[0, -1]
            raw = logits.log_softmax(-1)
            if body["temperature"] == 0:
                new.append(int(logits.argmax()))
            else:
                shares = (logits / body["temperature"]).softmax(-1)
                new.append(int(torch.multinomial(shares, 1, generator=generator)))
            told.append(float(raw[new[-1]]))
            if new[-1] in ends:
                break
        ended = new[-1] in ends
        reason = "stop" if ended else "length"
        answer: dict[str, Any] = {"finish_reason": reason}
        if body.get("return_token_ids"):
            answer["token_ids"] = new
        if body.get("logprobs") is not None:
            answer["logprobs"] = {"token_logprobs": told}
        return answer


class _Handler(BaseHTTPRequestHandler):
    served: Served

    def do_GET(self) -> None:
        self._json(200, {"data": [{"id": "base"}, *({"id": name} for name in self.served.adapters)]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.served.lock:
            status, told = self._answer(self.path, body)
        self._send(status, told if isinstance(told, bytes) else json.dumps(told).encode())

    def _answer(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        served, name = self.served, body.get("lora_name", body.get("model"))
        has_it = name in served.adapters
        if path == "/v1/load_lora_adapter":
            if has_it:
                return 400, {"message": f"The lora adapter '{name}' has already been loaded."}
            served.load(name, body["lora_path"])
            return 200, b"Success: LoRA adapter added successfully."
        if not has_it:
            return 404, {"message": f"The lora adapter '{name}' cannot be found."}
        if path == "/v1/unload_lora_adapter":
            del served.adapters[name]
            return 200, b"Success: LoRA adapter removed successfully."
        if served.refuses_after is not None and len(served.asked) >= served.refuses_after:
            return 500, {"error": {"message": "EngineCore encountered an issue"}}
        served.asked.append(body | {"authorization": self.headers["Authorization"]})
        return 200, {"choices": [served.complete(body)]}

    def _json(self, status: int, value: Any) -> None:
        self._send(status, json.dumps(value).encode())

    def _send(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def serving(base: Path) -> Iterator[Served]:
    """Serve a model folder until the block ends."""
    served = Served(base)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"served": served}))
    served.url = f"http://127.0.0.1:{server.server_address[1]}"
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
