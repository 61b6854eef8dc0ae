"""A small model, a step and its reference gradients, which neither chunks nor ranks may change."""

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from encoders.fwd2bot.inputs import InputBuilder
from encoders.fwd2bot.model import AdapterSettings, Answers, Fwd2Bot, JointOutput, pool
from tests.tiny_models import make_pictures
from training.distributed import ALONE, Ranks
from training.grad_cache import Chunk, Embeddings
from training.losses import HARD_NEGATIVE

ANSWER_WEIGHT = 0.7
SOURCE_IDS = torch.tensor([5, 3, 9, 7, 4])
TARGET_IDS = torch.tensor([3, 5, HARD_NEGATIVE, 4, 9, 7, 5])
CAPTIONS = [
    "a red dog",
    "two cats on grass, and a dog",
    "snow",
    "a dog in the snow",
    "grass",
    "green",
    "cats?",
]


def make_model(builder: InputBuilder, dropout: float = 0.0) -> Fwd2Bot:
    """Stock LLaVA with a CLIP tower and non-zero adapters; only these and the summary tokens are trained."""
    torch.manual_seed(0)
    sizes = {"intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(image_size=16, patch_size=8, hidden_size=24, **sizes),
        text_config=LlamaConfig(
            vocab_size=len(builder.tokenizer), hidden_size=32, attention_dropout=dropout, **sizes
        ),
        image_token_index=builder.tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=4,
    )
    model = Fwd2Bot(LlavaForConditionalGeneration(config), builder.summary_count, AdapterSettings(4, 4))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return model.train()


def make_step(builder: InputBuilder) -> Chunk:
    """Three pictures and two texts; seven captions in two parts; six answers, two of them to one source."""
    sources = [builder.images(make_pictures()), builder.texts(["a cat", "two red dogs in snow"])]
    targets = [builder.texts(CAPTIONS[:4]), builder.texts(CAPTIONS[4:])]
    short = Answers(torch.tensor([4, 0]), *builder.answers(["what?"] * 2, ["red", "no"]))
    long = Answers(torch.tensor([1, 0, 2, 3]), *builder.answers(["what is it?"] * 4, CAPTIONS[:4]))
    return Chunk(sources, targets, [short, long])


def loss_of(
    embeddings: Embeddings, loss: nn.Module, source_ids: Tensor, target_ids: Tensor, ranks: Ranks
) -> Tensor:
    """The loss of sources against targets plus 0.3 times that of images against targets, over all ranks."""
    sources, targets, images = (ranks.gather(rows) for rows in embeddings)
    image_ids = ranks.gather(source_ids[: len(embeddings.images)])
    source_ids, target_ids = ranks.gather(source_ids), ranks.gather(target_ids)
    images = nn.functional.normalize(images, dim=1)
    value: Tensor = loss(sources, targets, source_ids, target_ids)
    value = value + 0.3 * loss(images, targets, image_ids, target_ids)
    return value


def run(model: Fwd2Bot, chunk: Chunk) -> JointOutput:
    output: JointOutput = model(chunk.sources, chunk.targets, chunk.answers)
    return output


def gradients_of(*modules: nn.Module) -> dict[str, Tensor]:
    named = ((name, each) for module in modules for name, each in module.named_parameters())
    return {name: each.grad.clone() for name, each in named if each.grad is not None}


def naive_gradients(model: Fwd2Bot, loss: nn.Module, step: Chunk) -> tuple[dict[str, Tensor], float]:
    """One forward over the whole step, one backward of the summed loss."""
    output = run(model, step)
    embeddings = Embeddings(pool(output.sources), pool(output.targets), output.images)
    total = loss_of(embeddings, loss, SOURCE_IDS, TARGET_IDS, ALONE) + ANSWER_WEIGHT * output.answer_loss
    total.backward()
    return gradients_of(model, loss), output.answer_loss.item()


def assert_same_gradients(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(found) == set(expected)
    for name, gradient in expected.items():
        # The gradient of a key bias is zero up to rounding, hence the second term.
        assert (found[name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-8, name
