"""Records of large JSON files, found by their brackets and read one by one."""

import json
from pathlib import Path

import pytest

from encoders.base import DatasetError
from training.sources.records import RecordFile


def test_records_are_those_of_the_json_whatever_brackets_their_texts_hold(tmp_path: Path) -> None:
    texts = ["}{][", 'a "quoted" \\ {', "\\\\", "ä 猫 \n\t", "", '\\"}']
    records = [{"id": number, "deep": [{"text": [text]}], text: None} for number, text in enumerate(texts)]
    for name, text in {
        "plain.json": json.dumps(records),
        "wide.json": "\ufeff " + json.dumps(records, indent=3, ensure_ascii=False),
        "lines.jsonl": "\n\n".join(json.dumps(record) for record in records) + "\n",
        "unended.jsonl": "\r\n".join(json.dumps(record) for record in records),
    }.items():
        (tmp_path / name).write_text(text, encoding="utf-8", newline="")
        file = RecordFile(tmp_path / name)
        assert [file.read(row) for row in range(len(file))] == records


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "", "holds no records"),
        ("a.json", "[]", "holds no records"),
        ("a.jsonl", "\n \n", "holds no records"),
        ("a.json", '{"images": []}', "is not a list of records"),
        ("a.json", "nonsense", "is not a list of records"),
    ],
)
def test_a_file_without_records_is_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DatasetError, match=message):
        RecordFile(tmp_path / name)


@pytest.mark.parametrize("text", ["{", "3", '{"a": tru}', "[" * 100_000, '{"a": "\ud800'])
def test_a_broken_line_spoils_no_other(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n' + text.encode("utf-8", "surrogatepass") + b'\n{"a": 2}\n')
    file = RecordFile(path)
    assert (file.read(0), file.read(2)) == ({"a": 1}, {"a": 2})
    with pytest.raises(DatasetError, match="its record"):
        file.read(1)
