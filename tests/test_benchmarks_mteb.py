"""Tasks of mteb's own classes on a few generated images, without network, where mteb is installed."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks import mteb_adapter
from encoders.base import DatasetError, MissingDependency
from tests.conftest import PALETTE, FakeEncoder

HAS_MTEB = find_spec("mteb") is not None
needs_mteb = pytest.mark.skipif(not HAS_MTEB, reason="mteb is not installed")
# Warnings of datasets, torch and others, which mteb lets through, must not fail these tests.
pytestmark = pytest.mark.filterwarnings("default")


def make_task(category: str) -> Any:
    """A task that finds each colour's picture by its name ("t2i"), or its name by its picture ("i2t")."""
    from datasets import Dataset
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata

    metadata = TaskMetadata(
        name=f"Colours{category}",
        description="Colours and their names.",
        dataset={"path": "nowhere/colours", "revision": "1"},
        type="Any2AnyRetrieval",
        category=category,
        modalities=["text", "image"],
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score="ndcg_at_10",
    )
    names = list(PALETTE)
    texts = Dataset.from_dict({"id": names, "text": [f"something {name}" for name in names]})
    pictures = [Image.new("RGB", (40, 30), PALETTE[name]) for name in names]
    images = Dataset.from_dict({"id": names, "image": pictures})

    class Colours(AbsTaskRetrieval):
        def load_data(self, *_: object, **__: object) -> None:
            queries, corpus = (texts, images) if category == "t2i" else (images, texts)
            relevant = {name: {name: 1} for name in names}
            split = {"corpus": corpus, "queries": queries, "relevant_docs": relevant, "top_ranked": None}
            self.dataset, self.data_loaded = {"default": {"test": split}}, True

    Colours.metadata = metadata
    return Colours()


@needs_mteb
@pytest.mark.parametrize("category", ["t2i", "i2t"])
def test_an_encoder_that_knows_colours_is_given_full_marks(category: str) -> None:
    import mteb

    model = mteb_adapter.MtebEncoder(FakeEncoder())
    result = mteb.evaluate(model, [make_task(category)], cache=None, show_progress_bar=False)
    (task,) = result.task_results
    assert task.get_score() == pytest.approx(1.0)
    assert task.scores["test"][0]["recall_at_1"] == pytest.approx(1.0)
    assert (result.model_name, result.model_revision) == ("fwd2bot/tiny", "fake-1")


@needs_mteb
def test_the_adapter_is_what_mteb_calls_an_encoder() -> None:
    from mteb.models import EncoderProtocol

    model = mteb_adapter.MtebEncoder(FakeEncoder(name="../some where/model"))
    assert isinstance(model, EncoderProtocol)
    assert model.mteb_model_meta.name == "fwd2bot/.._some_where_model"


@needs_mteb
def test_batches_of_texts_of_images_and_of_both_keep_their_order() -> None:
    encoder = FakeEncoder()
    model, pictures = mteb_adapter.MtebEncoder(encoder), [Image.new("L", (8, 8), grey) for grey in (0, 255)]
    texts = encoder.encode_texts(["black", "white"])
    images = encoder.encode_images([picture.convert("RGB") for picture in pictures]).vectors
    batches = [{"text": ["black"], "image": pictures[:1]}, {"text": ["white"], "image": pictures[1:]}]
    np.testing.assert_allclose(model.encode(batches), texts + images, atol=1e-6)
    np.testing.assert_allclose(model.similarity(texts, images), texts @ images.T, atol=1e-6)
    np.testing.assert_allclose(model.similarity_pairwise(texts, images), (texts * images).sum(1), atol=1e-6)
    with pytest.raises(DatasetError, match="audio"):
        model.encode([{"audio": [0]}])


@needs_mteb
def test_the_command_writes_what_every_task_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import mteb

    evaluate = mteb.evaluate
    monkeypatch.setattr(mteb, "get_task", lambda name: make_task(name))
    monkeypatch.setattr(
        mteb, "evaluate", lambda *given: evaluate(*given, cache=None, show_progress_bar=False)
    )
    monkeypatch.setattr(mteb_adapter, "load_encoder", lambda name, device: FakeEncoder())
    out = tmp_path / "out.json"
    assert mteb_adapter.main(["--tasks", "t2i", "i2t", "--json", str(out)]) == 0
    result = json.loads(out.read_text())["result"]["tasks"]
    assert {name: each["main_score"] for name, each in result.items()} == {
        "Colourst2i": 1.0,
        "Coloursi2t": 1.0,
    }
    assert "Colourst2i       100.00" in capsys.readouterr().out


@needs_mteb
def test_a_task_that_mteb_does_not_know_is_one_sentence() -> None:
    with pytest.raises(DatasetError, match="Flickr30kT2IRetrievl") as caught:
        mteb_adapter.evaluate_tasks(FakeEncoder(), ["Flickr30kT2IRetrievl"])
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(HAS_MTEB, reason="mteb is installed")
def test_a_package_that_is_not_there_is_named_with_its_command() -> None:
    with pytest.raises(MissingDependency, match="pip install mteb"):
        mteb_adapter.evaluate_tasks(FakeEncoder(), ["Flickr30kT2IRetrieval"])
