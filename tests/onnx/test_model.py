"""What was exported is opened whole or refused."""

import json
import sys
from pathlib import Path

import pytest

from cee_gym.errors import CeeGymError
from cee_gym.onnx.model import OnnxModel
from tests.onnx.exports import copy_of, exported


def test_a_damaged_export_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CeeGymError, match="there is no exported model at"):
        OnnxModel(tmp_path / "nowhere")
    cut = copy_of(exported("bert"), tmp_path / "cut")
    (cut / "segment-2.onnx").unlink()
    with pytest.raises(CeeGymError, match=r"segment-2.onnx is missing or damaged"):
        OnnxModel(cut)
    changed = copy_of(exported("bert"), tmp_path / "changed")
    content = bytearray((changed / "segment-1.onnx").read_bytes())
    content[-100] ^= 1
    (changed / "segment-1.onnx").write_bytes(content)
    with pytest.raises(CeeGymError, match=r"segment-1.onnx is missing or damaged"):
        OnnxModel(changed)
    old = copy_of(exported("bert"), tmp_path / "old")
    description = json.loads((old / "export.json").read_text())
    (old / "export.json").write_text(json.dumps(description | {"version": 0}))
    with pytest.raises(CeeGymError, match="of version 0, this cee-gym reads version 2"):
        OnnxModel(old)
    for content in (description | {"files": 3}, {"version": 2}, []):
        (old / "export.json").write_text(json.dumps(content))
        with pytest.raises(CeeGymError, match=r"the exported model at .* is damaged .*: export it"):
            OnnxModel(old)


def test_classes_go_by_number_in_documents_whose_keys_were_sorted(tmp_path: Path) -> None:
    directory = copy_of(exported("bert"), tmp_path / "sorted")
    config = json.loads((directory / "config.json").read_text())
    names = {number: f"class {number}" for number in range(12)}
    config["id2label"] = {str(number): name for number, name in names.items()}
    (directory / "config.json").write_text(json.dumps(config, sort_keys=True))  # 0, 1, 10, 11, 2
    description = json.loads((directory / "export.json").read_text())
    (directory / "export.json").write_text(json.dumps(description, sort_keys=True))
    assert OnnxModel(directory).labels == list(names.values())


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    directory = exported("bert")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(CeeGymError, match=r'onnxruntime: pip install "cee-gym\[export\]"'):
        OnnxModel(directory)
