r"""Data-parallel training: several processes train one model, each on its share of every batch.

    accelerate launch --config_file training/configs/accelerate_ddp.yaml \
        -m training.train CONFIG --data DIR --run DIR

Each rank computes the loss of the whole batch from the embeddings of all ranks, and backpropagates only the
gradient of its own rows; the sum of the ranks' gradients is then the gradient of the whole batch. Gradients
are all-reduced explicitly, once per step: `DistributedDataParallel` would reduce them after each chunk of
`training.grad_cache`, and requires every parameter to be used in every forward, which is not the case in a
batch without images.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed
from torch import Tensor, nn

from encoders.base import MissingDependency
from encoders.load import choose_device


@dataclass(frozen=True)
class Ranks:
    """The rank of this process among `count`, and its device."""

    rank: int
    count: int
    device: torch.device

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of all ranks, in rank order; gradients only flow to this rank's own rows."""
        if self.count == 1:
            return rows
        length = torch.tensor([len(rows)], device=rows.device)
        lengths = [int(each) for each in self._gather_equal(length)]
        if not any(lengths):
            return rows
        padded = rows.new_zeros(max(lengths), *rows.shape[1:])
        padded[: len(rows)] = rows.detach()
        parts = [part[:each] for part, each in zip(self._gather_equal(padded), lengths, strict=True)]
        parts[self.rank] = rows
        return torch.cat(parts)

    def add(self, value: Tensor) -> Tensor:
        """The sum of a tensor over all ranks."""
        total = value.detach().clone()
        if self.count > 1:
            torch.distributed.all_reduce(total)
        return total

    def most(self, value: Tensor) -> Tensor:
        """The elementwise maximum of a tensor over all ranks."""
        largest = value.detach().clone()
        if self.count > 1:
            torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
        return largest

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum each gradient over all ranks; a parameter that no rank used keeps None."""
        if self.count == 1:
            return
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        here = [parameter.grad is not None for parameter in trained]
        used = self.add(torch.tensor(here, dtype=torch.int32, device=self.device))
        pending = []
        for parameter, times in zip(trained, used.tolist(), strict=True):
            if times:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                pending.append(torch.distributed.all_reduce(parameter.grad, async_op=True))
        for work in pending:
            work.wait()

    def _gather_equal(self, tensor: Tensor) -> list[Tensor]:
        parts = [torch.empty_like(tensor) for _ in range(self.count)]
        torch.distributed.all_gather(parts, tensor.contiguous())
        return parts


ALONE = Ranks(0, 1, torch.device("cpu"))


def join_ranks() -> Ranks:
    """Join the process group that `accelerate launch` set up; a single process runs alone."""
    device = choose_device("auto")
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Ranks(0, 1, torch.device(device))
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise MissingDependency("Several processes need accelerate: pip install 'fwd2bot[train]'") from error
    state = PartialState(cpu=device == "cpu")
    return Ranks(state.process_index, state.num_processes, state.device)
