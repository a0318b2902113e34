"""The HTTP client of the address service."""

from __future__ import annotations

import argparse
import ssl
from typing import Any, Self

import httpx

from sriov_fast.common.errors import SriovError

Json = dict[str, Any]


class Remote:
    """An HTTP client of the service; each refusal becomes a SriovError."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._url = args.url.rstrip("/")
        headers = {"user-agent": "sriov-fast-ipam"}
        if args.token_file:
            headers["authorization"] = f"Bearer {args.token_file.read_text().strip()}"
        options: Json = {"verify": _trust(args), "timeout": args.timeout, "trust_env": False}
        try:
            self._client = httpx.Client(base_url=self._url, headers=headers, **options)
        except httpx.InvalidURL as error:
            raise SriovError(f"url: {self._url!r}: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def get(self, path: str, **query: str | None) -> Json:
        """Return the JSON of a successful GET."""
        found: Json = self.ask(
            "GET", path, params={key: value for key, value in query.items() if value}
        ).json()
        return found

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Send a request, and return a successful response."""
        response = self.send(method, path, **options)
        if not response.is_success:
            raise SriovError(explanation(response))
        return response

    def send(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Send a request, and return the response, also an error."""
        try:
            return self._client.request(method, path, **options)
        except httpx.HTTPError as error:
            raise SriovError(f"{self._url}: {str(error) or type(error).__name__}") from error
        except httpx.InvalidURL as error:
            raise SriovError(f"url: {self._url!r}: {error}") from error


def _trust(args: argparse.Namespace) -> ssl.SSLContext:
    if bool(args.cert) != bool(args.key):
        raise SriovError("--cert and --key belong together")
    try:
        context = ssl.create_default_context(cafile=args.ca)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if args.cert:
            context.load_cert_chain(args.cert, args.key)
    except OSError as error:
        files = ", ".join(str(path) for path in (args.ca, args.cert, args.key) if path)
        reason = error.reason if isinstance(error, ssl.SSLError) else error.strerror
        raise SriovError(f"ca, cert, key: {files}: {reason or error}") from error
    return context


def explanation(response: httpx.Response) -> str:
    """Return the reason in an error response."""
    try:
        problem = response.json()
        return f"{problem['detail']} ({problem['kind']}, status {response.status_code})"
    except (ValueError, KeyError, TypeError):
        return f"{response.url}: status {response.status_code}, and no problem document: is this our service?"
