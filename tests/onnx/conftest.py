"""Exporting needs packages that are not there everywhere."""

import pytest

pytest.importorskip("onnxruntime", reason="needs the extra `export`")
pytest.importorskip("onnxscript", reason="needs the extra `export`")
