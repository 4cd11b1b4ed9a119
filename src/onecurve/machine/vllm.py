"""A vLLM server by its address: as much of its HTTP interface as drawing completions takes."""

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any, NamedTuple

_AT_ONCE = 256
"""Requests that are under way together; the server batches them."""
_PAUSE_SECONDS, _SECONDS_TO_SAY_HELLO = 2.0, 10.0
_SHOWN = 300
_BUSY = (502, 503, 504)
_BROKEN = (OSError, ValueError, http.client.HTTPException)
"""What a connection fails with; an address that is none, too."""
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Without the proxy of the environment: the server is a node beside this one."""


class ServerError(Exception):
    """The server cannot be reached, or refuses; the message says what it said."""


class _Away(ServerError):
    """It may be there again in a moment."""


class _Refused(ServerError):
    """It answered, and will not do it."""


class Drawn(NamedTuple):
    """What the server wrote after one prompt."""

    ids: list[int]
    """The end token included where it came."""
    ended: bool
    logps: list[float]
    """What the server says of each token's log-probability, before temperature."""


@dataclass(frozen=True)
class VllmServer:
    """What `vllm serve` listens to; VLLM_API_KEY of the environment is sent where it is set."""

    address: str
    """Such as http://node7:8000."""
    patience: float = _SECONDS_TO_SAY_HELLO
    """Seconds that an answer may take, and a server may be away."""

    def models(self) -> list[str]:
        """Return the names of what it serves.

        Raises:
            ServerError: It is not there.
        """
        served = self._ask("v1/models").get("data")
        return [str(one.get("id")) for one in served or () if isinstance(one, dict)]

    def load_adapter(self, name: str, folder: str, again: bool = False) -> None:
        """Have it serve the adapter in a folder that it can read.

        Args:
            name: To serve it under.
            folder: Where it lies.
            again: Whether it may have it already.

        Raises:
            ServerError: It refuses.
        """
        self._ask("v1/load_lora_adapter", {"lora_name": name, "lora_path": folder}, "already been loaded", again)

    def unload_adapter(self, name: str) -> None:
        """Have it forget an adapter.

        Raises:
            ServerError: It refuses.
        """
        self._ask("v1/unload_lora_adapter", {"lora_name": name}, "cannot be found")

    def draw(
        self,
        model: str,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        ends: Sequence[int],
        options: Mapping[str, Any],
    ) -> list[Drawn]:
        """Return what a model writes after each prompt.

        Args:
            model: Or adapter, by the name it is served under.
            prompts: Token ids.
            seeds: Of each.
            ends: Tokens that end a text.
            options: By transformers' names: `max_new_tokens`, `do_sample`, `temperature`, `top_k`, `top_p`.

        Raises:
            ServerError: It does not answer, or not as asked.
        """
        asked = _options(model, ends, options)
        threads = ThreadPoolExecutor(_AT_ONCE)
        try:
            # A request a text: those of one request share a seed, and a group would be one text several times
            futures = [
                threads.submit(self._complete, {**asked, "prompt": list(prompt), "seed": seed % 2**63})
                for prompt, seed in zip(prompts, seeds, strict=True)
            ]
            for future in as_completed(futures):
                future.result()
        finally:  # where one has failed, none of the others is waited for
            threads.shutdown(wait=False, cancel_futures=True)
        return [future.result() for future in futures]

    def _complete(self, body: dict[str, Any]) -> Drawn:
        """Return one text, whole: cut off at the most tokens, or ended by one of the tokens that were named."""
        (choice, *_) = self._ask("v1/completions", body).get("choices") or [{}]
        ids, reason = choice.get("token_ids"), choice.get("finish_reason")
        if not isinstance(ids, list):
            raise ServerError("its answers have no token_ids, which vLLM 0.10.2 and later return when asked")
        ended = reason == "stop"
        whole = ids[-1:] and ids[-1] in body["stop_token_ids"] if ended else len(ids) == body["max_tokens"]
        if reason not in ("stop", "length") or not whole:
            raise ServerError(
                f"a text of {len(ids)} tokens ended with {reason}, and neither with an end token nor at the "
                f"{body['max_tokens']} that were asked for. Is its --max-model-len too small?"
            )
        logps = (choice.get("logprobs") or {}).get("token_logprobs") or []
        if len(logps) != len(ids) or None in logps:
            raise ServerError("its answers do not say how likely each token is (logprobs)")
        return Drawn(ids, ended, logps)

    def _ask(
        self, path: str, body: dict[str, Any] | None = None, done: str = "", tried: bool = False
    ) -> dict[str, Any]:
        """Return what it says to a request; tried again where it cannot be reached or is busy, not where it is slow.

        Args:
            path: Of the address.
            body: What is sent; None: something is only got.
            done: What a refusal says of a request that was answered before.
            tried: Whether this one may have been.
        """
        until = time.monotonic() + self.patience
        while True:
            try:
                return self._asked(path, body)
            except _Refused as error:
                if tried and done and done in str(error):
                    return {}
                raise
            except _Away:
                if time.monotonic() + _PAUSE_SECONDS > until:
                    raise
            tried = True
            time.sleep(_PAUSE_SECONDS)

    def _asked(self, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("VLLM_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        data = None if body is None else json.dumps(body).encode()
        try:
            request = urllib.request.Request(f"{self.address.rstrip('/')}/{path}", data, headers)
            with _OPENER.open(request, timeout=self.patience) as answer:
                return _read(answer.read())
        except urllib.error.HTTPError as error:
            raise (_Away if error.code in _BUSY else _Refused)(
                f"it answers {path} with {error.code}: {_told(error)}"
            ) from None
        except _BROKEN as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, TimeoutError):
                raise ServerError(f"it did not answer {path} within {self.patience:g} seconds") from None
            is_none = isinstance(error, (ValueError, http.client.InvalidURL))  # no address at all
            raise (ServerError if is_none else _Away)(
                f"it cannot be reached: {reason or type(error).__name__}"
            ) from None


def _options(model: str, ends: Sequence[int], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the body of a request: each option is named, or the model's generation_config.json would be asked."""
    sampled = options["do_sample"]
    return {
        "model": model,
        "max_tokens": options["max_new_tokens"],
        "temperature": options["temperature"] if sampled else 0.0,
        "top_k": (sampled and options.get("top_k")) or -1,
        "top_p": (sampled and options.get("top_p")) or 1.0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "ignore_eos": True,  # its own end tokens; these are ours
        "stop_token_ids": list(ends),
        "skip_special_tokens": False,
        "return_token_ids": True,
        "logprobs": 1,
    }


def _told(error: urllib.error.HTTPError) -> str:
    try:
        return error.read().decode(errors="replace").strip()[:_SHOWN]
    except _BROKEN:
        return "(and no more)"


def _read(said: bytes) -> dict[str, Any]:
    try:
        found = json.loads(said)
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {}  # an adapter is loaded with a line of text
