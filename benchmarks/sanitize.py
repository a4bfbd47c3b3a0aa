"""One small case of every op by every backend of a GPU: `compute-sanitizer python -m benchmarks.sanitize`.

Sizes with ends, more weights than a sample of a selection and more collected than one block takes, unaligned views,
ties that need an order, both mask words.
"""

import torch

from dsd_kernels import backends, kth_magnitude, masked_sgd_, pack_mask, prune_, unpack_mask, use_backend
from dsd_kernels.ops.global_selection import global_counts

SIZES = (65, 20_001, 1_000_003)
DTYPES = (torch.float32, torch.bfloat16)


def kernels_of(device: str) -> list[str]:
    """The backends that serve a device by kernels of their own."""
    return [row.backend for row in backends() if row.device == device and row.available and row.backend != "reference"]


def run(device: str) -> None:
    for dtype in DTYPES:
        for offset in (0, 1):  # of the views: aligned, and not
            params, grads, buffers = (
                [torch.randn(n + 1, device=device).to(dtype)[offset:] for n in SIZES] for _ in range(3)
            )
            params[0].zero_()
            k = [len(p) // 3 for p in params]
            kth_magnitude(params, k)
            global_counts(params, sum(k))
            prefixes = torch.zeros(len(params), dtype=torch.int64, device=device)
            torch.ops.dsd_kernels.magnitude_histogram(params, prefixes, 8 * dtype.itemsize - 8)
            masks = prune_(params, buffers, k=k)
            masked_sgd_(params, grads, buffers, masks, lr=0.1, momentum=0.9)
            pack_mask(unpack_mask(masks, params))


if __name__ == "__main__":
    for backend in kernels_of("cuda"):
        with use_backend(backend):
            run("cuda")
        torch.cuda.synchronize()
        print(f"every op of {backend} has run")
