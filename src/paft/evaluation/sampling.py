"""The order in which cells of a grid are bought when not all of them will be."""

from __future__ import annotations

import math

import numpy as np

from paft.errors import ShapeError


class BalancedOrder:
    """All cells of K prompts x N examples in a random order that is balanced wherever one stops.

    After any number of cells, no two prompts and no two examples differ by more than one in how often they occur. Cells of a
    prompt are a random sample of the examples, without replacement. A pure function of (K, N, seed), computed at any position:
    cell t is prompt pi[(t + h[t div L]) mod K], example sigma[t mod N], with L = lcm(K, N), random permutations pi and sigma,
    and h of the gcd(K, N) shifts that keep passes over the grid apart.
    """

    def __init__(self, num_prompts: int, num_examples: int, seed: int):
        if min(num_prompts, num_examples) < 1:
            raise ShapeError(f"{num_prompts} prompts x {num_examples} examples; expected at least one of each")
        self.shape = num_prompts, num_examples
        random = np.random.default_rng([seed, num_prompts, num_examples])
        self._prompt_K, self._example_N = random.permutation(num_prompts), random.permutation(num_examples)
        self._shift_G = random.permutation(math.gcd(num_prompts, num_examples))
        self._pass = math.lcm(num_prompts, num_examples)

    def __len__(self) -> int:
        return self.shape[0] * self.shape[1]

    def cells(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Prompts and examples of the cells from position start to stop."""
        t = np.arange(start, min(stop, len(self)))
        prompts = self._prompt_K[(t + self._shift_G[t // self._pass]) % self.shape[0]]
        return prompts, self._example_N[t % self.shape[1]]
