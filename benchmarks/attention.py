"""`python -m benchmarks.attention`: attention as PyTorch's fused kernel and as batched products, by length and dtype.

Which is faster depends on the processor: `ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16` before it leaves AMX out.
"""

import argparse

import torch

from .floor import products, sdpa
from .measure import compare

HEADS, HEAD_SIZE = 12, 64
SHAPES = ((32, 64), (8, 128), (16, 256), (4, 512), (2, 1024), (1, 1536), (1, 4096))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="paired runs of each case")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.set_grad_enabled(False)
    print("| dtype | batch x length | sdpa, ms | times as fast as products | quartiles |\n" + "|---" * 5 + "|")
    for dtype in (torch.float32, torch.bfloat16):
        for batch, length in SHAPES:
            states = [torch.randn(batch, length, HEADS, HEAD_SIZE, dtype=dtype).transpose(1, 2) for _ in range(3)]
            runs = {"products": lambda states=states: products(*states)}
            ratio = compare(lambda states=states: sdpa(*states), runs, arguments.rounds)["products"]
            spread = f"{ratio.median:.1f} | {ratio.low:.1f} to {ratio.high:.1f}"
            print(f"| {str(dtype)[6:]} | {batch}x{length} | {1000 * ratio.seconds:.1f} | {spread} |", flush=True)


if __name__ == "__main__":
    main()
