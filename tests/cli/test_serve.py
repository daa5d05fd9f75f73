"""`cee-gym serve`: what it refuses before anything is loaded."""

from tests.cli.commands import refused


def test_all_layers_have_no_speed(capsys) -> None:
    message = refused(capsys, "serve", "model", "--full-depth", "--saved-layers", "0.3")
    assert message == "cee-gym: --full-depth runs all layers: leave --saved-layers out"
