"""What installed packages add: a package of every kind, installed for peers as real processes."""

import json
import sys
import tomllib
from dataclasses import replace

import pytest

from docs_blocks import blocks
from dslth.config import plugins
from dslth.errors import ConfigError

PAGE = {name: text for _, name, text in blocks("plugins.md") if name}
GROUPS = tomllib.loads(PAGE["pyproject.toml"])["project"]["entry-points"]
ENTRIES = {group.removeprefix("dslth."): named for group, named in GROUPS.items()}


def install(site, entries):
    """Put a package where Python finds it, as an installer does."""
    info = site / "extra-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "extra.py").write_text(PAGE["extra.py"])
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: extra\nVersion: 1.0\n")
    groups = (
        "\n".join([f"[dslth.{kind}]", *(f"{name} = {at}" for name, at in named.items())])
        for kind, named in entries.items()
    )
    (info / "entry_points.txt").write_text("\n\n".join(groups))
    return {"PYTHONPATH": str(site)}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Install into this process."""

    def there(**entries):
        install(tmp_path / "site", entries)
        monkeypatch.syspath_prepend(str(tmp_path / "site"))
        monkeypatch.delitem(sys.modules, "extra", raising=False)
        plugins.found.cache_clear()

    yield there
    plugins.found.cache_clear()


FILE = PAGE["mine.yaml"]


def test_peers_use_what_a_package_adds(commands):
    (commands.folder / "mine.yaml").write_text(FILE)
    env = install(commands.folder / "site", ENTRIES)
    done = commands.run("dslth", "run", "-t", "mine.yaml", "--out", "run", "--sink", "lines=said", "--json", env=env)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["masked_weights"] == 6 * 24 + 24 * 3
    assert figures["accuracy_personal"] > 0.8
    assert figures["payload_bytes_sent"] == 3 * 2 * 4 * (6 * 24 // 8 + 24 * 3 // 8)  # a bit for each weight
    said = (commands.folder / "run" / "said").read_text().split()
    assert said.count("round") == 12
    # a ticket names the plugins, but does without those that are not needed
    shown = commands.run("dslth", "ticket", "show", "run/tickets/peer-1.safetensors")
    assert shown.returncode == 3, shown.stderr
    assert "--model" in shown.stderr
    (commands.folder / "data.csv").write_text("a,b,c,d,e,f\n3,0,0,0,0,0\n0,3,0,0,0,0\n0,0,3,0,0,0\n")
    ticket = "run/tickets/peer-1.safetensors"
    predicted = commands.run(
        "dslth", "ticket", "predict", ticket, "data.csv", "--model", "site/extra.py:tiny", "--json"
    )
    assert predicted.returncode == 0, predicted.stderr
    named = commands.run("dslth", "ticket", "predict", ticket, "data.csv", "--model", "tiny", "--json", env=env)
    assert named.stdout == predicted.stdout
    assert all(name in predicted.stdout for name in "abc")


def test_what_is_not_installed_is_one_line(commands):
    (commands.folder / "mine.yaml").write_text(FILE)
    done = commands.run("dslth", "run", "-t", "mine.yaml")
    assert done.returncode == 3
    assert (
        "experiment.data.name: expected digits, mnist, fashion-mnist, cifar10, got 'spots' (and 3 more)" in done.stderr
    )
    env = install(commands.folder / "site", ENTRIES | {"datasets": {"dots": "extra:spots"}})
    done = commands.run("dslth", "run", "-t", "mine.yaml", env=env)
    assert done.returncode == 3
    assert "experiment.data.name: expected digits, mnist, fashion-mnist, cifar10, dots, got 'spots'" in done.stderr
    schema = commands.run("dslth", "schema", env=env)
    assert '"dots"' in schema.stdout


def test_a_codec_that_is_not_installed_is_unknown(here):
    from dslth.coding import codecs

    here()
    codecs._plugins.cache_clear()
    assert codecs.by_id(130) is None


def test_a_codec_must_be_one(here):
    from dslth.coding import codecs

    here(codecs={"other": "extra:bits"})
    codecs._plugins.cache_clear()
    with pytest.raises(ConfigError, match="codec 'other': expected a dslth"):
        codecs.by_id(130)


@pytest.mark.parametrize("wire_id", [0, 3, 127, 256])
def test_a_codecs_wire_id_is_one_for_plugins(wire_id, here, monkeypatch):
    from dslth.coding import codecs

    here(codecs={"bits": "extra:bits"})
    codecs._plugins.cache_clear()
    import extra

    monkeypatch.setattr(extra, "bits", replace(extra.bits, wire_id=wire_id))
    with pytest.raises(ConfigError, match="with a wire id of 128 to 255"):
        codecs.by_id(200)
    codecs._plugins.cache_clear()


def test_two_codecs_cannot_share_a_wire_id(here, monkeypatch):
    from dslth.coding import codecs

    here(codecs={"bits": "extra:bits", "more": "extra:more"})
    codecs._plugins.cache_clear()
    import extra

    monkeypatch.setattr(extra, "more", replace(extra.bits, name="more"), raising=False)
    with pytest.raises(ConfigError, match="have the same wire id 130"):
        codecs.by_id(130)
    codecs._plugins.cache_clear()


def test_a_plugin_that_cannot_be_imported_is_one_line(here):
    here(means={"broken": "extra:nothing"})
    with pytest.raises(ConfigError, match=r"mean 'broken' \(extra:nothing\) cannot be imported: AttributeError"):
        plugins.loaded("means", "broken")
