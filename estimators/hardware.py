"""What GPUs can do, from their makers' data sheets; names as people and drivers write them.

Dense rates, without sparsity. Idle power is measured where a source says so, else a guess of the
same class of card; ``idle_w`` of a known card should come from its own meter.
"""

from __future__ import annotations

import re

from estimators.types import GpuFacts

# Sources, one a line of the table below:
#   [n] NVIDIA data sheets (nvidia.com/en-us/data-center/<product>), GeForce: the whitepapers
#       "NVIDIA Ampere GA102", "Ada GPU Architecture" and "RTX Blackwell GPU Architecture"
#       (FP16 with FP32 accumulate)
#   [a] AMD Instinct data sheets      [i] Intel Gaudi 2 and 3 white papers
# Idle: A100-80 59-62 W, RTX 6000 Ada 25-29 W (chuyishang/inference-energy), H100 NVL 61-63 W
# (TokenPowerBench), RTX 50xx minima of llm-consumer-gpu-benchmark; the others are guesses.
_FIELDS = (
    "memory_gb",
    "mem_bandwidth_gbs",
    "fp16_tflops",
    "fp8_tflops",
    "int8_tflops",
    "fp4_tflops",
    "tdp_w",
    "idle_w",
    "link_gbs",
)
_TABLE: dict[str, tuple[float | None, ...]] = {
    "T4": (16, 320, 65, None, 130, None, 70, 10, 32),  # n
    "V100-PCIe-32GB": (32, 900, 112, None, None, None, 250, 35, 32),  # n
    "V100-PCIe-16GB": (16, 900, 112, None, None, None, 250, 35, 32),  # n
    "V100-SXM2-16GB": (16, 898, 125, None, None, None, 300, 40, 300),  # n
    "V100-SXM2-32GB": (32, 898, 125, None, None, None, 300, 40, 300),  # n
    "A2": (16, 200, 18, None, 36, None, 60, 9, 16),  # n
    "A10": (24, 600, 125, None, 250, None, 150, 16, 64),  # n
    "A10G": (24, 600, 70, None, 140, None, 300, 18, 64),  # n; AWS G5 only
    "A16": (16, 200, 18, None, 36, None, 62, 15, 64),  # n; one of its four GPUs
    "A30": (24, 933, 165, None, 330, None, 165, 30, 200),  # n
    "A40": (48, 696, 150, None, 299, None, 300, 30, 112),  # n
    "A100-40GB-PCIe": (40, 1555, 312, None, 624, None, 250, 40, 64),  # n
    "A100-40GB-SXM": (40, 1555, 312, None, 624, None, 400, 50, 600),  # n
    "A100-80GB-PCIe": (80, 1935, 312, None, 624, None, 300, 45, 64),  # n
    "A100-80GB-SXM": (80, 2039, 312, None, 624, None, 400, 61, 600),  # n
    "L4": (24, 300, 121, 242, 242, None, 72, 15, 64),  # n
    "L40": (48, 864, 181, 362, 362, None, 300, 35, 64),  # n
    "L40S": (48, 864, 362, 733, 733, None, 350, 35, 64),  # n
    "H20": (96, 4000, 148, 296, 296, None, 400, 70, 900),  # n
    "H100-PCIe": (80, 2039, 756, 1513, 1513, None, 350, 50, 128),  # n
    "H100-NVL": (94, 3938, 835, 1671, 1671, None, 400, 61, 600),  # n
    "H100-SXM": (80, 3350, 989, 1979, 1979, None, 700, 70, 900),  # n
    "H200-NVL": (141, 4890, 835, 1671, 1671, None, 600, 75, 900),  # n
    "H200-SXM": (141, 4800, 989, 1979, 1979, None, 700, 77, 900),  # n
    "GH200": (96, 4000, 989, 1979, 1979, None, 900, 90, 900),  # n
    "B100-SXM": (180, 7700, 1750, 3500, 3500, 7000, 700, 130, 1800),  # n
    "B200-SXM": (180, 7700, 2250, 4500, 4500, 9000, 1000, 140, 1800),  # n
    "GB200": (186, 8000, 2500, 5000, 5000, 10000, 1200, 150, 1800),  # n
    "B300-SXM": (270, 7700, 2250, 4500, 150, 13500, 1100, 150, 1800),  # n
    "RTX-A6000": (48, 768, 155, None, 310, None, 300, 22, 112),  # n
    "RTX-6000-Ada": (48, 960, 364, 728, 728, None, 300, 27, 64),  # n
    "RTX-PRO-6000": (96, 1792, 503, 1007, 1007, 2015, 600, 30, 128),  # n
    "RTX-3060": (12, 360, 25, None, 102, None, 170, 12, 32),  # n
    "RTX-3080": (10, 760, 60, None, 238, None, 320, 20, 32),  # n
    "RTX-3090": (24, 936, 71, None, 284, None, 350, 20, 112),  # n
    "RTX-4060Ti-16GB": (16, 288, 44, 177, 177, None, 165, 10, 32),  # n
    "RTX-4080": (16, 717, 97, 390, 390, None, 320, 13, 64),  # n
    "RTX-4090": (24, 1008, 165, 330, 660, None, 450, 15, 64),  # n
    "RTX-5060Ti-16GB": (16, 448, 47, 190, 190, 380, 180, 11, 64),  # n
    "RTX-5070": (12, 672, 62, 247, 247, 494, 250, 14, 128),  # n
    "RTX-5070Ti": (16, 896, 88, 352, 352, 703, 300, 18, 128),  # n
    "RTX-5080": (16, 960, 113, 450, 450, 900, 360, 18, 128),  # n
    "RTX-5090": (32, 1792, 209, 838, 838, 1676, 575, 25, 128),  # n
    "MI210": (64, 1638, 181, None, 181, None, 300, 40, 100),  # a
    "MI250X": (128, 3277, 383, None, 383, None, 560, 90, 100),  # a
    "MI300X": (192, 5300, 1307, 2615, 2615, None, 750, 140, 896),  # a
    "MI325X": (256, 6000, 1307, 2615, 2615, None, 1000, 150, 896),  # a
    "Gaudi2": (96, 2450, 432, 865, None, None, 600, 100, 300),  # i
    "Gaudi3": (128, 3700, 1835, 1835, None, None, 900, 120, 600),  # i
}

GPUS: dict[str, GpuFacts] = {
    name: GpuFacts(name=name, **dict(zip(_FIELDS, row, strict=True)))  # type: ignore[arg-type]
    for name, row in _TABLE.items()
}

# What drivers, clouds and people call them, without maker, spaces and punctuation.
_ALIASES = {
    "v100": "V100-SXM2-32GB",
    "v100sxm2": "V100-SXM2-32GB",
    "v100pcie": "V100-PCIe-32GB",
    "v10016gb": "V100-SXM2-16GB",
    "v10032gb": "V100-SXM2-32GB",
    "a100": "A100-80GB-SXM",
    "a10040gb": "A100-40GB-SXM",
    "a10080gb": "A100-80GB-SXM",
    "a100sxm": "A100-80GB-SXM",
    "a100sxm4": "A100-80GB-SXM",
    "a100sxm40gb": "A100-40GB-SXM",
    "a100sxm80gb": "A100-80GB-SXM",
    "a100sxm440gb": "A100-40GB-SXM",
    "a100sxm480gb": "A100-80GB-SXM",
    "a100pcie": "A100-80GB-PCIe",
    "a100pcie40gb": "A100-40GB-PCIe",
    "a100pcie80gb": "A100-80GB-PCIe",
    "a10080gbpcie": "A100-80GB-PCIe",
    "h100": "H100-SXM",
    "h10080gb": "H100-SXM",
    "h10080gbhbm3": "H100-SXM",
    "h100sxm5": "H100-SXM",
    "h100sxm80gb": "H100-SXM",
    "h100sxm580gb": "H100-SXM",
    "h10080gbsxm": "H100-SXM",
    "h10080gbsxm5": "H100-SXM",
    "h100mega80gb": "H100-SXM",
    "h200141gb": "H200-SXM",
    "h200141gbhbm3e": "H200-SXM",
    "gb200nvl72": "GB200",
    "h100pcie80gb": "H100-PCIe",
    "h100nvl94gb": "H100-NVL",
    "h200": "H200-SXM",
    "h200sxm5": "H200-SXM",
    "gh20096gb": "GH200",
    "gh200480gb": "GH200",
    "gracehopper": "GH200",
    "b100": "B100-SXM",
    "b200": "B200-SXM",
    "b300": "B300-SXM",
    "a6000": "RTX-A6000",
    "6000ada": "RTX-6000-Ada",
    "rtx6000adageneration": "RTX-6000-Ada",
    "rtxpro6000blackwellservedition": "RTX-PRO-6000",
    "rtxpro6000blackwellserveredition": "RTX-PRO-6000",
    "rtxpro6000blackwellworkstationedition": "RTX-PRO-6000",
    "rtxpro6000blackwell": "RTX-PRO-6000",
    "rtx4060ti": "RTX-4060Ti-16GB",
    "rtx5060ti": "RTX-5060Ti-16GB",
    "rtx309024gb": "RTX-3090",
    "rtx409024gb": "RTX-4090",
    "rtx509032gb": "RTX-5090",
    "rtx508016gb": "RTX-5080",
    "rtx5070ti16gb": "RTX-5070Ti",
    "mi250": "MI250X",
}

_MAKERS = re.compile(r"nvidia|geforce|tesla|quadro|amd|instinct|intel|habana|graphics|gpu")


def gpu_named(name: str) -> GpuFacts | None:
    """The data sheet of a GPU, by our name, the driver's, or a usual short form; None: unknown."""
    found = GPUS.get(name)
    if found is not None:
        return found
    if name.lower() == "nvidia-tesla-a100":  # Google's name of the 40 GB card; NVML has no such
        return GPUS["A100-40GB-SXM"]
    short = re.sub(r"[^a-z0-9]", "", _MAKERS.sub("", name.lower()))
    return _BY_SHORT.get(short)


def idle_power_w(gpu: GpuFacts) -> float:
    """Idle power of one GPU; where nobody measured it, 0.13 of the power limit.

    0.13 is the middle of the measured cards in the table (0.06 RTX, 0.15 A100 and H100 NVL).
    """
    return gpu.idle_w if gpu.idle_w is not None else 0.13 * gpu.tdp_w


def link_bandwidth_gbs(gpu: GpuFacts) -> float:
    """Between GPUs of one machine, both ways together; PCIe 4.0 x16 where it is not known."""
    return gpu.link_gbs if gpu.link_gbs is not None else 64.0


_BY_SHORT = {re.sub(r"[^a-z0-9]", "", name.lower()): gpu for name, gpu in GPUS.items()}
_BY_SHORT.update({alias: GPUS[name] for alias, name in _ALIASES.items()})
