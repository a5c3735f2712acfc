"""How fast this machine multiplies: the yardstick for every time quoted.

    python experiments/benchmarks/machine.py

Times in README and docs are stated for two CPU cores that reach 400 GFLOP/s on the
product of two 2000 x 2000 float32 matrices; on another machine, scale by this figure.
"""

import statistics
import time

import jax
import jax.numpy as jnp

REFERENCE_GFLOPS = 400.0


def matmul_gflops(size: int = 2000, repeats: int = 11) -> float:
    """Median rate of size^2 float32 products, 2 size^3 operations each, in GFLOP/s."""
    a = jnp.ones((size, size), jnp.float32)
    product = jax.jit(lambda a: a @ a)
    product(a).block_until_ready()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        product(a).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / statistics.median(seconds) / 1e9


if __name__ == "__main__":
    rate = matmul_gflops()
    print(f"{rate:.0f} GFLOP/s, {rate / REFERENCE_GFLOPS:.2f} of the reference machine")
