"""Fit R-ICE on the times it was published with, and write what serving needs of it.

``python -m benchmarks.fit_rice ../shared/data --out estimators/rice.json``: HELM's idealised times
(Apache-2.0), a random forest and a polynomial, read at the sizes and prompts they were fitted at.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.seeds import rice_of

_FILES = ("helm_prompt_encoding.csv", "helm_per_output_token.csv")
_SIZES = (0.35, 6.0, 6.7, 7.5, 20.0, 52.0, 100.0, 175.0, 530.0)
_PROMPTS = (1, 16, 32, 64, 128, 192, 256, 384, 512, 768, 1024, 1280, 1536, 1792, 1920)


def main(argv: Sequence[str] | None = None) -> int:
    """Fit and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", nargs="?", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("estimators/rice.json"))
    args = parser.parse_args(argv)
    rice = rice_of(args.data)
    seconds = np.array([[rice.prefill_s(size, prompt) for prompt in _PROMPTS] for size in _SIZES])
    # A forest may fall by a little; a longer prompt and a larger model never take less.
    rising = np.maximum.accumulate(np.maximum.accumulate(seconds, axis=0), axis=1)
    data = hashlib.sha256()
    for name in _FILES:
        data.update((args.data / "energy" / name).read_bytes())
    values = {
        "about": {
            "built_by": "python -m benchmarks.fit_rice ../shared/data",
            "data_sha256": data.hexdigest()[:16],
            "sources": [
                {"file": name, "from": "stanford-crfm/helm @ 63754d05", "licence": "Apache-2.0"}
                for name in _FILES
            ],
            "formula": "Sikand et al., Breaking the ICE, GREENS 2025",
        },
        "params_b": _SIZES,
        "prompt_tokens": _PROMPTS,
        "prefill_s": rising.round(5).tolist(),
        "token_coefficients": [float(f"{value:.6g}") for value in rice.token_coefficients],
    }
    args.out.write_text(json.dumps(values, indent=1) + "\n")
    print(f"{args.out}: {args.out.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
