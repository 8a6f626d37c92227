"""Machines as data: what a device holds, computes and sends. `8xH100` is one node, `64xH100` eight of them."""

import re
from dataclasses import dataclass

from ouro_lab.compute.hardware import peak_flops

NODE = 8  # GPUs of a node
LINK_SHARE = 0.8  # of a link's speed that large collectives reach
WRITE = 2e9  # bytes/s that a node writes checkpoints at: a shared file system, stated
# A device fails so often: 419 unexpected interruptions in 54 days of 16,384 H100 (Llama 3 Herd of Models, §3.3.4).
DEVICE_MTBF = 16_384 * 54 * 86_400 / 419


@dataclass(frozen=True)
class Device:
    """memory: bytes. near, far: bytes/s that it sends to its own node and to other ones. peak: bf16 FLOP/s, None of a
    CPU, whose speed is measured."""

    name: str
    memory: float
    near: float
    far: float
    peak: float | None = None


@dataclass(frozen=True)
class Machine:
    device: Device
    count: int

    @property
    def nodes(self) -> int:
        return -(-self.count // NODE)

    @property
    def link(self) -> float:
        """Bytes/s of a collective over all devices: the slowest link of its ring."""
        return LINK_SHARE * (self.device.near if self.nodes == 1 else self.device.far)

    @property
    def mtbf(self) -> float:
        """Mean seconds between failures of any of its devices."""
        return DEVICE_MTBF / self.count

    def __str__(self) -> str:
        return f"{self.count}×{self.device.name}"


# Data sheets (SXM): NVLink in one direction, half of the sum that they give; between nodes 200 or 400 Gb/s a GPU.
GPUS = {
    "A100": Device("A100", 80e9, 300e9, 25e9, peak_flops("A100")),
    "H100": Device("H100", 80e9, 450e9, 50e9, peak_flops("H100")),
    "H200": Device("H200", 141e9, 450e9, 50e9, peak_flops("H200")),
    "B200": Device("B200", 180e9, 900e9, 50e9, peak_flops("B200")),
}
CPU_LINK = 1e9  # of gloo, on one host


def parse(text: str, cpu_memory: float) -> Machine:
    """`8xH100`, `64×h200`, `H100`, `cpu`. cpu_memory: bytes of this machine's memory, which `N x cpu` share.

    Raises:
        ValueError: not so many of a known device.
    """
    known = {name.upper(): device for name, device in GPUS.items()}
    known["CPU"] = Device("cpu", cpu_memory, CPU_LINK, CPU_LINK)
    match = re.fullmatch(r"(?:(\d+)\s*[x×*]\s*)?([A-Za-z]\w*)", text.strip())
    count = int(match.group(1) or 1) if match else 0
    if match is None or count < 1 or match.group(2).upper() not in known:
        raise ValueError(
            f"MACHINE = {text}: must be a number of a device, as 8xH100; devices: {', '.join([*GPUS, 'cpu'])}"
        )
    device = known[match.group(2).upper()]
    return Machine(Device("cpu", cpu_memory / count, CPU_LINK, CPU_LINK) if device.peak is None else device, count)
