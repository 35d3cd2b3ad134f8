"""bf16 autocast, where the hardware has it."""

import torch

from rayrun.config import ConfigError


def check_bf16(device: torch.device, key: str = "train.precision") -> None:
    """bf16 arithmetic exists on the device; `key` is the setting that asks for it.

    Raises:
        ConfigError: it does not, and would be emulated slowly.
    """
    if device.type == "cuda":
        has = torch.cuda.get_device_capability(device) >= (8, 0)
        needs = "an NVIDIA GPU of compute capability 8.0 or more"
    else:
        found = torch.cpu.get_capabilities()
        has = any(found.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
        needs = "a CPU with AVX512_BF16, AMX_BF16 or the Arm bf16 extension"
    if not has:
        raise ConfigError(
            f"{key}: bf16 needs {needs}, this {device.type} device has none; set it to fp32"
        )
