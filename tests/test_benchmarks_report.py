"""The report runs what it names, shows what was measured, and leaves hand-written text alone."""

import json
from pathlib import Path

import pytest

from benchmarks import report, report_plan
from benchmarks.charts import draw_charts, list_recall_by_bytes, list_recall_by_rate, list_throughput
from benchmarks.charts import main as draw
from benchmarks.peers.contenders import RIVALS
from benchmarks.report import render_block, replace_block
from benchmarks.report_plan import SECTIONS, Scope, Section, choose_photos
from benchmarks.scenes import write_scenes
from encoders.base import Fwd2BotError
from indexer.manifest import read_manifest
from tests.conftest import FakeEncoder

RUN = {
    "benchmark": "ann",
    "command": "python -m benchmarks.ann",
    "date": "2026-01-01T00:00:00+00:00",
    "seed": 3,
    "encoder": {"name": "tiny", "fingerprint": "f0"},
    "versions": {"numpy": "2.0"},
    "machine": {"processor": "A processor", "system": "Linux", "cores": 2},
    "table": "a table\n",
}
ANN = {
    "collections": [
        {
            "source": "some vectors",
            "kinds": [
                {
                    "name": "fwd2bot",
                    "points": [{"queries_per_second": 10.0, "recall_at_10": 0.9}],
                },
                {
                    "name": "other",
                    "points": [
                        {"queries_per_second": 20.0, "recall_at_10": 0.5},
                        {"queries_per_second": 5.0, "recall_at_10": 1.0},
                    ],
                },
            ],
        }
    ]
}
SECTION = Section("ann", "Neighbours", "Some words.", "benchmarks.ann", lambda scope: ["--rows", "600"])


def test_a_block_tells_command_date_machine_versions_seed_and_model() -> None:
    block = render_block(RUN, ["pictures/ann_1.svg"])
    for words in (RUN["command"], RUN["date"], "A processor, 2 cores", "numpy 2.0", "seed 3", "tiny (f0)"):
        assert str(words) in block
    assert "```\na table\n```" in block and "](pictures/ann_1.svg)" in block


def test_a_race_with_rclip_is_told_with_the_query_that_its_indexing_includes() -> None:
    for section in SECTIONS:
        if section.name.startswith("race_"):
            assert ("hold a query too" in section.words) == section.name.startswith("race_rclip")


def test_a_block_takes_the_place_of_the_one_before_and_of_nothing_else() -> None:
    first = replace_block("# Title\n\nBy hand.\n", SECTION, "one")
    assert first.startswith("# Title\n\nBy hand.\n\n## Neighbours\n\nSome words.\n\n<!-- begin ann -->")
    changed = first.replace("Some words.", "Better words.") + "\nAfter.\n"
    second = replace_block(changed, SECTION, "two")
    assert second == changed.replace("\none\n", "\ntwo\n")


@pytest.mark.parametrize("document", ["<!-- begin ann -->", "<!-- end ann --> <!-- begin ann -->"])
def test_markers_that_do_not_enclose_anything_are_refused(document: str) -> None:
    with pytest.raises(Fwd2BotError, match="put them right"):
        replace_block(document, SECTION, "one")


def test_sections_have_names_of_their_own_and_commands_that_exist() -> None:
    names = [section.name for section in SECTIONS]
    assert len(names) == len(set(names))
    root = Path(report.__file__).parents[1]
    assert all((root / (section.module.replace(".", "/") + ".py")).exists() for section in SECTIONS)


def test_photos_and_rivals_are_measured_only_where_they_are_given(tmp_path: Path) -> None:
    def names(data: Path | None, place: Path | None, fast: bool = False) -> set[str]:
        return {each.name for each in report.choose_sections([], Scope(fast, tmp_path, data, place))}

    plain = names(None, None)
    assert names(tmp_path, None) - plain == {"text_to_image_photos", "generation_photos", "ann_photos"}
    assert all(name.startswith(("race_", "side_by_side_")) for name in names(None, tmp_path) - plain)
    assert plain - names(None, None, fast=True) == {"ann_million"}
    slow = names(None, tmp_path) - names(None, tmp_path, fast=True)
    assert len(slow) == 1 + len(RIVALS) and all(name == "ann_million" or "_12mp" in name for name in slow)
    with pytest.raises(Fwd2BotError, match="dataset_"):
        choose_photos(Scope(False, tmp_path, tmp_path, None))


def test_a_folder_without_photos_is_refused_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "flickr").mkdir()
    (tmp_path / "flickr" / "dataset_flickr.json").touch()
    document = tmp_path / "benchmarks.md"
    asked = ["--data", str(tmp_path), "--results", str(tmp_path / "out"), "--document", str(document)]
    assert report.main(asked) == 1
    assert f"give --data the folder of one, such as {tmp_path / 'flickr'}." in capsys.readouterr().err
    assert not document.exists() and not (tmp_path / "out").exists()


def test_what_is_measured_is_shown_and_what_fails_keeps_its_last_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    good = SECTION._replace(
        list_arguments=lambda scope: [
            "--rows",
            "600",
            "--dim",
            "8",
            "--kinds",
            "fwd2bot",
            "--seconds",
            "0.01",
        ]
    )
    bad = SECTION._replace(name="broken", list_arguments=lambda scope: ["--index", str(tmp_path / "none")])
    monkeypatch.setattr(report, "SECTIONS", [good, bad])
    document = tmp_path / "docs" / "benchmarks.md"
    places = ["--results", str(tmp_path / "results"), "--document", str(document)]
    assert report.main(places) == 1
    assert "not measured: broken" in capsys.readouterr().err
    text = document.read_text()
    assert "600 clustered vectors of 8" in text and "broken" not in text
    assert "](pictures/ann_1.svg)" in text and (document.parent / "pictures" / "ann_1.svg").exists()
    assert report.main([*places, "--render"]) == 0
    assert document.read_text() == text


def test_where_the_photos_lie_is_nobodys_concern(tmp_path: Path) -> None:
    data = tmp_path / "photos"
    write_scenes(data, 2, seed=0)
    section = SECTION._replace(module="benchmarks.text_to_image", list_arguments=choose_photos)
    results = tmp_path / "results"
    report.measure_section(section, Scope(True, results, data, None))
    command = json.loads((results / "ann.json").read_text())["command"]
    assert "--dataset DIR/dataset_scenes.json --images DIR " in command


def test_an_index_of_another_model_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "photos"
    write_scenes(data, 3, seed=0)
    scope = Scope(True, tmp_path / "results", data, None)
    for fingerprint, embedded in [("old", 3), ("old", 0), ("new", 3)]:
        encoder = FakeEncoder(fingerprint=fingerprint)
        monkeypatch.setattr(report_plan, "load_encoder", lambda name, encoder=encoder: encoder)
        index = report_plan.choose_index(scope)
        assert encoder.embedded == embedded and read_manifest(index).encoder.fingerprint == fingerprint


def test_charts_take_their_points_from_the_results() -> None:
    ours, other = list_recall_by_rate(ANN, 0)
    assert ours == ("fwd2bot", [(10.0, 0.9)]) and other.points == [(20.0, 0.5), (5.0, 1.0)]
    cost = {"form": "tokens int8", "bytes_per_image": 2000.0, "recall_at_10": 0.2}
    assert list_recall_by_bytes({"costs": [cost]}) == [("tokens int8", [(2000.0, 0.2)])]
    encoder = {"model": "m", "images_per_second": {"1": 3.0, "16": 9.0}}
    result = {"encoders": [encoder], "random": ["m"]}
    assert list_throughput(result) == [("m (random weights)", [(1.0, 3.0), (16.0, 9.0)])]


def test_the_same_figures_give_the_same_chart_to_the_byte(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "ann.json").write_text(json.dumps(RUN | {"result": ANN}))
    first = draw_charts(tmp_path / "ann.json", tmp_path / "a")
    second = draw_charts(tmp_path / "ann.json", tmp_path / "b")
    assert [path.name for path in first] == ["ann_1.svg"]
    assert first[0].read_bytes() == second[0].read_bytes()
    assert "fwd2bot" in first[0].read_text() and "recall@10" in first[0].read_text()


@pytest.mark.parametrize("content", ["no json", "[]", '{"benchmark": "ann", "result": {}}'])
def test_a_result_of_another_form_is_named(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ann.json").write_text(content)
    assert draw([str(tmp_path / "ann.json"), "--out", str(tmp_path)]) == 1
    assert "ann.json" in capsys.readouterr().err
