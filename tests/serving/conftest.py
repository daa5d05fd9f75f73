"""A pipeline of the confidence rule, and a client of it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from cee_gym.exits import MultiExitModel
from cee_gym.inference import EarlyExitPipeline
from cee_gym.policies.rules import Confidence
from tests.serving.clients import client_of, problem


@pytest.fixture
def pipeline(tiny_model: MultiExitModel, tiny_tokenizer: Any, tmp_path: Path) -> EarlyExitPipeline:
    policy = Confidence(threshold=0.8).policy(problem(tmp_path, ("confidence",), 0.02))
    return EarlyExitPipeline(tiny_model, tiny_tokenizer, policy)


@pytest.fixture
def client(pipeline: EarlyExitPipeline) -> Iterator[TestClient]:
    with client_of(pipeline) as client:
        yield client
