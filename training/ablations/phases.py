"""The loop of one training phase: AdamW on the trainable parameters, with a loss function of the step."""

import time
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from encoders.base import TrainingDiverged
from training.ablations.settings import PhaseSettings
from training.run_log import tell
from training.trainer import make_optimizer, schedule_rate

_TOLD_EVERY = 50


def run_phase(
    name: str, phase: PhaseSettings, parameters: Iterable[nn.Parameter], find_loss: Callable[[int], Tensor]
) -> float:
    """Take all steps and return the seconds they took; raises TrainingDiverged if a loss is not finite."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    settings = phase.optimizer
    optimizer = make_optimizer(trained, settings)
    start = time.perf_counter()
    for step in range(phase.steps):
        for group in optimizer.param_groups:
            group["lr"] = schedule_rate(settings, step, phase.steps)
        loss = find_loss(step)
        if not torch.isfinite(loss):
            raise TrainingDiverged(
                f"The loss of {name} is {loss.item()} at step {step}: lower the learning rate, which is "
                f"{settings.learning_rate}"
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, settings.gradient_norm)
        optimizer.step()
        if (step + 1) % _TOLD_EVERY == 0 or step + 1 == phase.steps:
            rate = phase.photos * (step + 1) / (time.perf_counter() - start)
            tell(f"{name}  step {step + 1} of {phase.steps}  loss {loss.item():.4f}  images/s {rate:.4g}")
    return time.perf_counter() - start
