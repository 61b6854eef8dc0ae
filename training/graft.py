"""Replace a checkpoint's vision tower with one trained in two towers, which is faster than behind an LLM."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import BatchEncoding

from encoders.base import DatasetError
from encoders.fwd2bot.model import Fwd2Bot
from training.states import STATE_FILE, read_state

_PREFIX = "image_tower."  # of the tower's weight names, in the state of a training.two_tower run


@torch.no_grad()
def graft_tower(model: Fwd2Bot, run: Path, batches: Sequence[BatchEncoding]) -> None:
    """Give the model the image tower of a `training.two_tower` run; both must have the same architecture.

    The projector's first layer is fitted by least squares over the pictures of `batches`, so that its outputs
    on the new tower's features match those on the old tower's: the LLM's input hardly changes, and training
    can then make use of whatever else the new tower has learned ("model stitching", Lenc and Vedaldi, arXiv
    1411.5908, section 4). Raises DatasetError if the run has no such tower, the model has no such projector,
    or there are no pictures.
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
    """The projector's inputs: (image tokens of the batch, tower width)."""
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
