"""The order in which cells of a grid are bought when not all of them will be."""

from __future__ import annotations

import math

import numpy as np

from paft.errors import ShapeError


class BalancedOrder:
    """All cells of K prompts x N examples in a random order that is balanced wherever one stops.

    After any number of cells, no two prompts and no two examples differ by more than one in how often they occur. Cells of a
    prompt are a random sample of the examples, without replacement, and no two prompts share theirs more than chance has it.
    A pure function of (K, N, seed).

    The longer side of the grid, shuffled, is cut into blocks as long as the shorter side S, and each block is a Latin square
    of its own: row p of the square (its rows in random order) matches the block with the shorter side, shifted. Layer p of the
    order is row p of every block. A rest of r < S takes the shifts p r mod S, one step of which begins where the last ended,
    and every other block first visits those whom the rest has left behind.
    """

    def __init__(self, num_prompts: int, num_examples: int, seed: int):
        if min(num_prompts, num_examples) < 1:
            raise ShapeError(f"{num_prompts} prompts x {num_examples} examples; expected at least one of each")
        self.shape = num_prompts, num_examples
        random = np.random.default_rng([seed, num_prompts, num_examples])
        short, long = sorted(self.shape)
        blocks, rest = divmod(long, short)
        short_S, long_L = (random.permutation(size).astype(np.int32) for size in (short, long))
        shifts_BS, places_BS = (random.permuted(np.tile(np.arange(short), (blocks, 1)), axis=1) for _ in range(2))
        cosets = math.gcd(short, rest)
        coset_G, per_coset = random.permutation(cosets), short // cosets
        shorts, longs = np.empty((2, short, long), dtype=np.int32)
        for p in range(short):
            # of the shorter side, those that the rest has visited lately: a stretch of `ahead` from `start` on
            start, ahead = int(coset_G[p // per_coset]), p % per_coset * rest % short
            turn_S = (start + np.arange(short)) % short
            for block in range(blocks):
                order_S = turn_S[np.r_[ahead + random.permutation(short - ahead), random.permutation(ahead)]]
                at = slice(block * short, (block + 1) * short)
                shorts[p, at] = order_S
                longs[p, at] = block * short + (places_BS[block, order_S] - shifts_BS[block, p]) % short
            shorts[p, blocks * short :] = (start + ahead + np.arange(rest)) % short
            longs[p, blocks * short :] = np.arange(blocks * short, long)
        sides = short_S[shorts].ravel(), long_L[longs].ravel()
        self._prompts, self._examples = sides if num_prompts == short else sides[::-1]

    def __len__(self) -> int:
        return self.shape[0] * self.shape[1]

    def cells(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Prompts and examples of the cells from position start to stop."""
        return self._prompts[start:stop], self._examples[start:stop]
