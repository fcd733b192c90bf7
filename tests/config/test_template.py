"""The topology file that ``dslth init`` writes: it runs, and so does what its comments offer."""

import re

import pytest
import yaml
from jsonschema import Draft202012Validator

from dslth import config, topology
from dslth.config import DataName, GraphName
from dslth.engines.base import preflight

ACCEPTS = Draft202012Validator(config.json_schema())


@pytest.mark.parametrize("graph", GraphName)
@pytest.mark.parametrize("peers", [9, 12, 300])
def test_a_new_file_can_run_and_has_the_peers_that_were_asked_for(graph: GraphName, peers: int) -> None:
    text = config.template(graph, peers, DataName.DIGITS)
    run = config.parse(text, "new")
    assert run.graph.kind == graph
    assert max(map(len, text.splitlines())) <= 120
    made = topology.build(run.graph, 1)
    assert made.peers == peers
    preflight(run, made, virtual=True)
    assert ACCEPTS.is_valid(yaml.safe_load(text))


@pytest.mark.parametrize("data", DataName)
def test_the_data_set_is_the_one_that_was_asked_for(data: DataName) -> None:
    assert config.parse(config.template(GraphName.RING, 10, data), "new").experiment.data.name == data


def test_what_it_offers_in_comments_is_taken_and_is_what_holds_without_it() -> None:
    text = config.template(GraphName.RING, 10, DataName.DIGITS)
    switched = re.sub(r"^( *)# (?= *\w+:( |$))(?!.*dslth)", r"\1", text, flags=re.MULTILINE)
    run, plain = config.parse(switched, "new"), config.parse(text, "new")
    assert run.network is not None
    assert (run.network.address(3), run.device(1).kind, run.device(2).batch) == ("tcp://peer-3:47100", "phone", 32)
    assert run.experiment.evaluate_every == 1
    assert run.experiment.model_copy(update={"evaluate_every": "auto"}) == plain.experiment
