"""`cee-gym serve`: what it refuses before anything is loaded."""

from tests.cli.commands import refused


def test_all_layers_have_no_speed(capsys) -> None:
    message = refused(capsys, "serve", "model", "--full-depth", "--saved-layers", "0.3")
    assert message == "cee-gym: --full-depth runs all layers: leave --saved-layers out"


def test_workers_out_of_range_are_refused(capsys) -> None:
    message = refused(capsys, "serve", "model", "--workers", "0")
    assert message == "cee-gym: --workers must be 1 to 256, got 0"


def test_what_only_a_worker_finds_out_is_one_line_too(capsys, run) -> None:
    message = refused(capsys, "serve", str(run), "--workers", "2", "--port", "0", "--at", "nowhere")
    assert message.startswith("cee-gym: no point 'nowhere': ")
