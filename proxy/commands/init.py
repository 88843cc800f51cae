"""Write a commented config.yaml from what is found on this machine."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from proxy import discovery
from proxy.commands import CommandError
from proxy.settings import BackendSettings

EXAMPLE = "joulegate init --out config.yaml"

HEAD = """\
# Joulegate's settings. `joulegate check config.yaml` tells what each would mean;
# docs/settings.md lists them all. os.environ/NAME reads an environment variable.

backends:
"""
EXAMPLE_BACKEND = """\
  # No engine answered on its usual port. Describe yours:
  - model: llama-3.1-8b              # what clients ask for
    url: http://127.0.0.1:8000/v1    # its OpenAI-compatible API
    upstream_model: meta-llama/Llama-3.1-8B-Instruct
    engine: vllm
    precision: bf16
    gpu: H100-SXM                    # with params_b: energy can be predicted
    num_gpus: 1
    params_b: 8.03
    quality: 0.62                    # how good its answers are, 0 to 1
    # meter: {kind: nvml, devices: ["0"]}   # when the GPU is in this machine
"""
TAIL = """
carbon:
  # zone: DE                         # grid zone; without one the world's mean is taken
  pue: 1.2

default_policy: least_energy

# With keys, only these are accepted, and other addresses than loopback may be listened on.
# teams:
#   search:
#     keys: [os.environ/SEARCH_TEAM_KEY]
#     policy: thrifty
#     limits: {max_energy_j: 5000}
#     budgets: [{per: month, energy_j: 3.6e9}]
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", metavar="F", default="config.yaml", help="file to write")
    parser.add_argument("--force", action="store_true", help="overwrite an existing file")


def run(args: argparse.Namespace) -> int:
    path = Path(args.out)
    if path.exists() and not args.force:
        raise CommandError(f"{path} exists. Give another --out, or --force to overwrite it.")
    found = discovery.discovered(os.environ)
    backends = "".join(described(backend) for backend in found) or EXAMPLE_BACKEND
    try:
        path.write_text(HEAD + backends + TAIL, encoding="utf-8")
    except OSError as error:
        raise CommandError(f"{path} cannot be written: {error.strerror}.") from None
    print(f"wrote {path} with {len(found)} backends found here; read it, then run:")
    print(f"  joulegate check {path}", file=sys.stdout)
    return 0


def described(backend: BackendSettings) -> str:
    """One found backend as YAML."""
    keys = {models: key for key, (models, _, _) in discovery.PROVIDER_KEYS.items()}
    lines = [f"  - model: {quoted(backend.model)}", f"    name: {quoted(backend.full_name)}"]
    if backend.url:
        lines.append(f"    url: {backend.url}")
    if backend.upstream_model is not None:
        lines.append(f"    upstream_model: {quoted(backend.upstream_model)}    # what * matched")
    lines.append(f"    provider: {backend.provider}")
    lines.append(f"    engine: {backend.engine}")
    if backend.api_key:
        lines.append(f"    api_key: os.environ/{keys[backend.model]}")
    if backend.supports_images is not None:
        lines.append(f"    supports_images: {json.dumps(backend.supports_images)}")
    if backend.context_tokens is not None:
        lines.append(f"    context_tokens: {backend.context_tokens}")
    if backend.simulated:
        lines.append("    simulated: true      # it says so itself: its joules are made up")
    if backend.gpu is not None:
        lines.append(f"    gpu: {backend.gpu}")
        lines.append(f"    params_b: {backend.params_b:g}     # as its name says: better hf_config")
        if backend.active_params_b is not None:
            lines.append(f"    active_params_b: {backend.active_params_b:g}")
        lines.append(f"    precision: {backend.precision}    # likewise")
    elif backend.engine != "api":
        lines.append("    # gpu: H100-SXM     # with params_b: energy can be predicted")
        lines.append("    # params_b: 8.03")
    if backend.node is not None:
        lines.append(f"    node: {backend.node}")
    if backend.meter is not None:
        lines.append(f"    meter: {{kind: {backend.meter.kind}}}")
    return "\n".join(lines) + "\n"


def quoted(name: str) -> str:
    """A model's name for YAML, whatever is in it, as a path of Windows."""
    return json.dumps(name, ensure_ascii=False)
