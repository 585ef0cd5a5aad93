"""The processes of one launch (`accelerate launch`, `torchrun`): who one is among them, and how they exchange plain values."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from paft.errors import ResourceError


@dataclass(frozen=True)
class Ranks:
    """One process of `size`; rank 0 alone writes files and speaks. Values are sent by pickle between processes of one user.

    Every process must make the same calls in the same order.
    """

    rank: int = 0
    size: int = 1

    def share(self, value: Any) -> Any:
        """The value of rank 0, in every process."""
        if self.size == 1:
            return value
        import torch.distributed as distributed

        held = [value]
        with _together():
            distributed.broadcast_object_list(held, src=0)
        return held[0]

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes in order of rank, in every process."""
        if self.size == 1:
            return [value]
        import torch.distributed as distributed

        held: list[Any] = [None] * self.size
        with _together():
            distributed.all_gather_object(held, value)
        return held


@contextlib.contextmanager
def launched() -> Iterator[Ranks]:
    """The ranks of this launch: one unless a launcher says otherwise (WORLD_SIZE, RANK, MASTER_ADDR, MASTER_PORT)."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Ranks()
        return
    import torch
    import torch.distributed as distributed

    ours = not distributed.is_initialized()
    if ours:
        # what the ranks tell each other travels between CPUs, gradients and shards of weights between GPUs where there are any;
        # a rank may compute for hours before it has something to say
        backend = "gloo"
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
            backend = "cpu:gloo,cuda:nccl"
        with _together():
            distributed.init_process_group(backend, timeout=timedelta(days=7))
    try:
        yield Ranks(distributed.get_rank(), distributed.get_world_size())
    finally:
        if ours:
            # gloo's threads end with the last reference to their group, and abort a process whose interpreter ends before they do
            gc.collect()
            distributed.destroy_process_group()


@contextlib.contextmanager
def _together() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:160]
        raise ResourceError(
            f"another process of this launch ended or cannot be reached ({reason}); what it said stands above, "
            "run the same command again to go on from here"
        ) from None
