"""Names to things: cee-gym's own, imported when first asked for, and those of users' modules."""

import sys
from types import ModuleType

import pytest

from cee_gym.errors import CeeGymError
from cee_gym.registry import Registry, import_user_module


@pytest.fixture
def registry(monkeypatch, tmp_path) -> Registry[str]:
    """One whose entries modules of the working directory add."""
    monkeypatch.chdir(tmp_path)
    found: Registry[str] = Registry("colour", {"digits": "string:digits"})
    holder = ModuleType("held_registry")
    holder.colours = found  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "held_registry", holder)
    before = set(sys.modules)
    yield found
    for name in set(sys.modules) - before:
        del sys.modules[name]


def write_module(tmp_path, name: str, *colours: str) -> None:
    lines = ["from held_registry import colours"]
    lines += [f"colours.add({colour!r}, 'of {name}', {name!r})" for colour in colours]
    (tmp_path / f"{name}.py").write_text("\n".join(lines))


def test_own_entries_are_imported_when_first_asked_for(registry) -> None:
    assert "digits" in registry
    assert list(registry) == ["digits"]
    assert registry.get("digits") == "0123456789"
    assert registry.full_name("digits") == "string:digits"


def test_an_entry_of_cee_gym_has_no_module_in_its_full_name() -> None:
    registry: Registry[object] = Registry("rule", {"pcee": "cee_gym.policies.rules:PCEE"})
    assert registry.full_name("pcee") == "pcee"
    registry.get("pcee")
    assert registry.full_name("pcee") == "pcee"


def test_a_module_of_the_working_directory_is_imported_for_its_entry(registry, tmp_path) -> None:
    write_module(tmp_path, "own_colours", "red")
    path = list(sys.path)
    assert registry.get("own_colours:red") == "of own_colours"
    assert sys.path == path
    assert registry.get("red") == "of own_colours"  # from now on
    assert list(registry) == ["digits", "red"]
    assert registry.full_name("red") == registry.full_name("own_colours:red") == "own_colours:red"


def test_a_name_is_that_of_the_module_that_is_asked_for(registry, tmp_path) -> None:
    write_module(tmp_path, "own_colours", "red")
    write_module(tmp_path, "others_colours", "blue")
    registry.get("own_colours:red")
    registry.get("digits")
    for name in ("others_colours:red", "others_colours:digits"):
        with pytest.raises(CeeGymError, match=r"unknown colour .* in others_colours"):
            registry.get(name)
    with pytest.raises(CeeGymError, match="module no_such cannot be imported"):
        registry.get("no_such:red")


def test_a_package_may_hold_its_entries_in_a_module_of_its_own(registry, tmp_path) -> None:
    (tmp_path / "paint").mkdir()
    (tmp_path / "paint" / "__init__.py").write_text("from paint import colours")
    code = "from held_registry import colours\ncolours.add('red', 'r', __name__)"
    (tmp_path / "paint" / "colours.py").write_text(code)
    assert registry.get("paint:red") == registry.get("paint.colours:red") == "r"
    assert registry.full_name("paint:red") == "paint.colours:red"


def test_unknown_names_are_answered_with_the_nearest(registry) -> None:
    with pytest.raises(CeeGymError, match="unknown colour 'digit': did you mean digits"):
        registry.get("digit")


def test_a_name_is_taken_once(registry) -> None:
    registry.add("red", "one", "mine")
    registry.add("red", "another", "mine")  # as when a module is reloaded
    assert registry.get("red") == "another"
    with pytest.raises(CeeGymError, match="'red' is taken by mine: choose another name"):
        registry.add("red", "one", "other")
    with pytest.raises(CeeGymError, match="'digits' is taken by string"):
        registry.add("digits", "one", "mine")
    with pytest.raises(CeeGymError, match="holds a colon"):
        registry.add("my:red", "one", "mine")


def test_what_a_script_defined_is_found_where_it_is_defined_again(registry) -> None:
    with pytest.raises(CeeGymError, match="defined in a script that was run by itself"):
        registry.get("__main__:red")
    registry.add("red", "one", "mine")
    assert registry.get("__main__:red") == "one"


def test_a_module_that_cannot_be_imported_is_one_line(monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "needs_more.py").write_text("import no_such_package_at_all")
    for name in ("no_such_module", "needs_more"):
        with pytest.raises(CeeGymError, match=f"module {name} cannot be imported") as caught:
            import_user_module(name)
        assert "\n" not in str(caught.value)
