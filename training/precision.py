"""Which precision a machine is fast in."""

from __future__ import annotations

from pathlib import Path

_CPU_INFO = Path("/proc/cpuinfo")
_MULTIPLIES_BF16 = {"avx512_bf16", "amx_bf16", "bf16"}


def fast_precision(cpu: bool) -> str:
    """bf16 where the device of a run multiplies it in hardware, else no. Elsewhere it is emulated, and slower."""
    if not cpu:
        import torch  # takes a second, which nobody who asks for --help should wait

        if torch.cuda.is_available():
            return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    return "bf16" if has_fast_bf16() else "no"


def has_fast_bf16() -> bool:
    """Whether the CPU multiplies bf16 in hardware, as far as Linux tells; never on other systems."""
    flags = {flag for key in ("flags", "Features") for flag in cpu_info().get(key, "").split()}
    return bool(flags & _MULTIPLIES_BF16)


def cpu_info() -> dict[str, str]:
    """Facts about the first core, as Linux tells them; nothing on other systems."""
    if not _CPU_INFO.is_file():
        return {}
    first = _CPU_INFO.read_text().split("\n\n")[0]
    pairs = (line.split(":", 1) for line in first.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}
