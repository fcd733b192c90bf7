"""Names: whatever carries one is there for every one of them."""

from dslth.coding.codecs import BY_NAME
from dslth.config import PRESETS, CodecName, DataName, Phase, Preset
from dslth.learning.data import SHAPES
from dslth.run.events import Seconds


def test_every_name_has_what_it_names() -> None:
    assert set(PRESETS) == set(Preset)
    assert set(SHAPES) == set(DataName)
    assert set(BY_NAME) == set(CodecName) - {CodecName.AUTO}
    assert set(Seconds.model_fields) == set(Phase)
