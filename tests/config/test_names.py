"""Names: there is an entry for every one of them."""

import shutil
import subprocess
import sys
from pathlib import Path

import dslth
from dslth.config import PRESETS, Phase, Preset
from dslth.runs.events import Seconds

REGISTRIES = {
    "CodecName": "dslth.coding.codecs",
    "DataName": "dslth.learning.data",
    "LinkName": "dslth.transport.links",
    "MeanName": "dslth.learning.means",
    "ModelName": "dslth.learning.models",
}
IMPORT = """
import importlib, sys
for module in sys.argv[1:]:
    try:
        importlib.import_module(module)
    except AssertionError:
        print(module)
"""


def test_every_name_has_what_it_names() -> None:
    assert set(PRESETS) == set(Preset)
    assert set(Seconds.model_fields) == set(Phase)


def test_a_registry_that_lacks_a_name_cannot_be_imported(tmp_path: Path) -> None:
    def incomplete() -> list[str]:
        line = [sys.executable, "-c", IMPORT, *REGISTRIES.values()]
        done = subprocess.run(line, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, stdout=subprocess.PIPE, check=True)
        return done.stdout.decode().split()

    shutil.copytree(Path(dslth.__file__).parent, tmp_path / "dslth", ignore=shutil.ignore_patterns("__pycache__"))
    assert incomplete() == []
    names = tmp_path / "dslth/config/names.py"
    text = names.read_text()
    for registry in REGISTRIES:
        text = text.replace(f"class {registry}(StrEnum):", f'class {registry}(StrEnum):\n    NEW = "new"\n')
    names.write_text(text)
    assert incomplete() == list(REGISTRIES.values())
