"""A real OpenID Connect provider (oidc-provider, certified by the OpenID Foundation) in a process
of its own, and a browser without a window that signs in there."""

from __future__ import annotations

import http.cookiejar
import json
import re
import shutil
import tempfile
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urljoin

from tests.servers import Server, free_port

FOLDER = Path(__file__).parent / "oidc_provider"


def is_installed() -> bool:
    """Whether ``python -m tests.prepare`` found or installed what it needs."""
    return (FOLDER / "node_modules" / "oidc-provider").is_dir() and shutil.which("node") is not None


def start_provider(issuer: str, **given: Any) -> Server:
    """The provider of that issuer (``http://127.0.0.1:PORT``), with clients and people."""
    port = int(issuer.rpartition(":")[2])
    environment = {"PROVIDER": json.dumps({"issuer": issuer, **given})}
    command = ["env", *(f"{k}={v}" for k, v in environment.items()), "node"]

    def ready() -> bool:
        try:
            with urllib.request.urlopen(f"{issuer}/.well-known/openid-configuration", timeout=5):
                return True
        except OSError:
            return False

    folder = Path(tempfile.mkdtemp(prefix="joulegate-provider-"))
    return Server([*command, str(FOLDER / "provider.mjs")], port, folder, ready, issuer)


def new_issuer() -> str:
    return f"http://127.0.0.1:{free_port()}"


class Page:
    """What a browser shows in the end."""

    def __init__(self, url: str, status: int, text: str) -> None:
        self.url = url
        self.status = status
        self.text = text


class Browser:
    """Keeps cookies and follows redirects, as browsers do."""

    def __init__(self) -> None:
        self.cookies = http.cookiejar.CookieJar()
        self._opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(self.cookies))

    def open(self, url: str, form: Mapping[str, str] | None = None) -> Page:
        data = None if form is None else urlencode(form).encode()
        try:
            with self._opener.open(url, data, timeout=20) as answer:
                return Page(answer.url, answer.status, answer.read().decode())
        except urllib.error.HTTPError as error:
            return Page(error.url or url, error.code, error.read().decode())

    def follow(self, page: Page, text: str) -> Page:
        """The page behind the link that says so."""
        (target,) = re.findall(rf'<a [^>]*href="([^"]*)"[^>]*>{re.escape(text)}', page.text)
        return self.open(urljoin(page.url, target.replace("&amp;", "&")))

    def sign_in_at_provider(self, page: Page, name: str) -> Page:
        """Fill in the provider's forms: who it is, then consent."""
        for _ in range(3):
            found = re.search(r'<form[^>]* action="([^"]+/interaction/[^"]+)"', page.text)
            if found is None:
                break
            prompt = re.search(r'name="prompt" value="(\w+)"', page.text)
            assert prompt is not None, page.text
            form = {"prompt": prompt[1]}
            if prompt[1] == "login":
                form |= {"login": name, "password": "any"}
            page = self.open(urljoin(page.url, found[1]), form)
        return page
