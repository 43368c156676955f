"""What makers say of their devices: dense peak FLOPs a second, each line with its source; unknown is None."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Peak:
    """Dense peak rates of one device, without structured sparsity.

    `name` holds the words that all occur in the name torch gives the device. `bfloat16_flops_per_second` is of its
    matrix units with float32 sums; `float32_flops_per_second` without TF32.
    """

    name: str
    bfloat16_flops_per_second: float | None
    float32_flops_per_second: float
    source: str

    def flops_per_second(self, dtype: str, tf32: bool = False) -> float | None:
        """Return the peak in a precision, None where the device lacks it; TF32 is half of bfloat16 on NVIDIA's."""
        if dtype == "float32" and tf32:
            has = self.bfloat16_flops_per_second if self.source.startswith("NVIDIA") else None
            return None if has is None else has / 2
        return self.bfloat16_flops_per_second if dtype == "bfloat16" else self.float32_flops_per_second


_HOPPER = "NVIDIA H100 Tensor Core GPU data sheet, halved where it counts sparsity"
_H200 = "NVIDIA H200 Tensor Core GPU data sheet, halved where it counts sparsity"
_BLACKWELL = "NVIDIA HGX B200 data sheet, per GPU, halved where it counts sparsity"
_AMPERE = "NVIDIA A100 Tensor Core GPU data sheet"
_ADA = "NVIDIA Ada GPU architecture white paper, appendix, float32 accumulation"
_GA102 = "NVIDIA Ampere GA102 GPU architecture white paper, float32 accumulation"
_VOLTA = "NVIDIA V100 data sheet; no bfloat16"
_CDNA = "AMD Instinct {} data sheet"

# More particular names come first: the first line whose words all occur is taken.
PEAKS: tuple[Peak, ...] = (
    Peak("B200", 2250e12, 75e12, _BLACKWELL),
    Peak("H200 NVL", 835.5e12, 60e12, _H200),
    Peak("H200", 989.5e12, 67e12, _H200),
    Peak("H100 NVL", 835.5e12, 60e12, _HOPPER),
    Peak("H100 PCIe", 756.5e12, 51e12, _HOPPER),
    Peak("H100 HBM3", 989.5e12, 67e12, _HOPPER),
    Peak("A100 SXM 80GB", 312e12, 19.5e12, _AMPERE),
    Peak("A100 SXM 40GB", 312e12, 19.5e12, _AMPERE),
    Peak("A100 PCIe 80GB", 312e12, 19.5e12, _AMPERE),
    Peak("A100 PCIe 40GB", 312e12, 19.5e12, _AMPERE),
    Peak("L40S", 362.05e12, 91.6e12, "NVIDIA L40S data sheet, halved where it counts sparsity"),
    Peak("L40", 181.05e12, 90.5e12, "NVIDIA L40 data sheet, halved where it counts sparsity"),
    Peak("L4", 121e12, 30.3e12, "NVIDIA L4 data sheet, halved where it counts sparsity"),
    Peak("RTX 5090", 209.5e12, 104.8e12, "NVIDIA RTX Blackwell GPU architecture white paper, appendix"),
    Peak("RTX 4090", 165.2e12, 82.6e12, _ADA),
    Peak("RTX 3090 Ti", 80.0e12, 40.0e12, _GA102),
    Peak("RTX 3090", 71.0e12, 35.6e12, _GA102),
    Peak("V100 SXM2", None, 15.7e12, _VOLTA),
    Peak("V100 PCIE", None, 14.0e12, _VOLTA),
    Peak("T4", None, 8.1e12, "NVIDIA T4 data sheet; no bfloat16"),
    Peak("MI325X", 1307.4e12, 163.4e12, _CDNA.format("MI325X")),
    Peak("MI300X", 1307.4e12, 163.4e12, _CDNA.format("MI300X")),
    Peak("MI250X", 191.5e12, 47.9e12, _CDNA.format("MI250X") + ", half of it: torch sees each die as a device"),
)
_OTHERS = frozenset({"MIG", "LAPTOP", "MOBILE", "MAX", "Q", "D", "DESIGN"})
"""Words in the names of slices, and of slower devices that share a name."""


def find_peak(device_name: str) -> Peak | None:
    """Find a device by the name that torch gives it; None for any that is not in the table.

    Examples
    --------
    >>> find_peak("NVIDIA H100 80GB HBM3").bfloat16_flops_per_second
    989500000000000.0
    >>> find_peak("NVIDIA H20") is None
    True
    """
    have = _words(device_name)
    if have & _OTHERS:
        return None
    return next((peak for peak in PEAKS if _words(peak.name) <= have), None)


def _words(name: str) -> set[str]:
    """Split a name; SXM4 and SXM5 are SXM, an A100-SXM4-80GB three words."""
    words = name.upper().replace("-", " ").replace("/", " ").split()
    return {*words, *(word[:3] for word in words if word.startswith("SXM"))}
