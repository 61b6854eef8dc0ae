"""Another vision tower for a checkpoint: one that learned in two towers, faster than behind an LLM."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import BatchEncoding

from encoders.base import DatasetError
from encoders.fwd2bot.model import Fwd2Bot
from training.states import STATE_FILE, read_state

_PREFIX = "image_tower."  # of its weights, in the state of a run of training.two_tower


@torch.no_grad()
def graft_tower(model: Fwd2Bot, run: Path, batches: Sequence[BatchEncoding]) -> None:
    """Give the model the image tower of a run of `training.two_tower`, of the same architecture.

    The projector's first layer is fitted, by least squares over the pictures of `batches`, to make of the new
    tower's features what it made of the old one's: the LLM sees nearly what it saw, and what else the tower
    knows is there to be learned ("model stitching", Lenc and Vedaldi, arXiv 1411.5908, section 4). Raises
    DatasetError where the run has no such tower, the model no such projector, or there are no pictures.
    """
    layer = _find_first_layer(model)
    if not batches:
        raise DatasetError("Another tower is fitted to pictures, and the first steps have none: add some")
    model.eval()
    wanted = torch.cat([layer(_read_features(model, inputs)) for inputs in batches]).double().cpu()
    state = read_state(run / STATE_FILE, torch.device("cpu")).get("model", {})
    tower = {name.removeprefix(_PREFIX): value for name, value in state.items() if name.startswith(_PREFIX)}
    try:
        model.lvlm.model.vision_tower.load_state_dict(tower)
    except RuntimeError as error:
        raise DatasetError(
            f"{run} holds no image tower like the model's: name a run of training.two_tower with the same "
            "tower_stem, tower_widths and tower_depths"
        ) from error
    features = torch.cat([_read_features(model, inputs) for inputs in batches]).double().cpu()
    features = torch.cat([features, features.new_ones(len(features), 1)], dim=1)
    fitted = torch.linalg.lstsq(features, wanted).solution.T
    layer.weight.copy_(fitted[:, :-1])
    layer.bias.copy_(fitted[:, -1])


def _read_features(model: Fwd2Bot, inputs: BatchEncoding) -> Tensor:
    """What the projector is given: (image tokens of the batch, tower's width)."""
    kept: list[Tensor] = []
    with _find_first_layer(model).register_forward_pre_hook(lambda _, given: kept.append(given[0])):
        model.image_features(inputs.to(model.device))
    return torch.cat([each.flatten(0, -2) for each in kept])


def _find_first_layer(model: Fwd2Bot) -> nn.Linear:
    try:
        layer: nn.Linear = model.lvlm.model.multi_modal_projector.linear_1
    except AttributeError as error:
        raise DatasetError(
            f"A {model.lvlm.config.model_type} has no projector as LLaVA's to be fitted: leave tower out"
        ) from error
    return layer
