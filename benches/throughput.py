"""How much of a machine's matrix throughput some work reaches: its operations, counted, and what matrix products alone reach."""

import time

import torch
from torch.utils.flop_counter import FlopCounterMode


def operations(work):
    """Floating-point operations of the matrix products, convolutions and attentions in `work`, forwards and backwards."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def peak(device):
    """Operations a second of large square matrix products: bf16 on a GPU, fp32 on a CPU."""
    n, kind = (8192, torch.bfloat16) if device == "cuda" else (2048, torch.float32)
    a, b = torch.randn(n, n, device=device, dtype=kind), torch.randn(n, n, device=device, dtype=kind)
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    best = float("inf")
    for _ in range(8):
        wait()
        began = time.perf_counter()
        a @ b
        wait()
        best = min(best, time.perf_counter() - began)
    return 2 * n**3 / best
