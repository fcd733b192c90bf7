"""The text of a new topology file, with comments that say what may be changed."""

from math import isqrt

from dslth.config.names import DataName, GraphName, ModelName

__all__ = ["template"]

MANY = {DataName.DIGITS: 50}
"""Peers from which a data set is too small to be divided, so that each draws its own samples; else 1000."""


def template(graph: GraphName, peers: int, data: DataName) -> str:
    """Return the text of a topology file; the graph may turn out to be impossible when it is made."""
    drawn = peers > MANY.get(data, 1000)
    partition = "{kind: drawn, classes_per_peer: 4, samples: 100}" if drawn else "{kind: classes, classes_per_peer: 4}"
    return TEMPLATE.format(graph=_graph(graph, peers), data=data, partition=partition, model=ModelName.CNN)


def _graph(graph: GraphName, peers: int) -> str:
    """Return the graph's settings as YAML; a grid is as near to a square as its peers allow."""
    match graph:
        case GraphName.GRID | GraphName.TORUS:
            rows = next((rows for rows in range(isqrt(max(peers, 1)), 0, -1) if peers % rows == 0), 1)
            size = f"rows: {rows}, columns: {peers // rows}"
        case GraphName.ERDOS_RENYI:
            size = f"peers: {peers}, p: {0.5 if peers < 40 else round(20 / peers, 3)}"
        case GraphName.SMALL_WORLD:
            size = f"peers: {peers}, neighbours: {4 if peers > 4 else 2}, p: 0.2"
        case GraphName.RANDOM_REGULAR:
            size = f"peers: {peers}, degree: {4 if peers > 4 else peers - 1}"
        case _:
            size = f"peers: {peers}"
    return f"{{kind: {graph}, {size}}}"


TEMPLATE = """\
# Who learns what with whom. To see the graph: dslth topology show FILE; whether it can run here: dslth doctor FILE;
# to run it: dslth run -t FILE.
# A key behind "# " is off: take these two characters away. Unknown keys are errors.

# Who talks to whom: ring, line, star, full {{peers}}; grid, torus {{rows, columns}}; erdos-renyi {{peers, p}};
# small-world {{peers, neighbours, p}}; random-regular {{peers, degree}}; edges {{peers, edges}};
# file {{file}}: a 0/1 matrix, an edge list or GraphML.
graph: {graph}

# Where the peers are; without it all of them on this machine. Past loopback they need keys: dslth keys make FILE.
# network: {{host: "peer-{{id}}", port: 47100}}   # or {{host: 10.0.0.7, base_port: 47100}}: peer i at port + i

experiment:
  seed: 1                     # of weights, data split and batches; the same file and seed give the same masks
  rounds: 20
  preset: signed              # for accuracy; mce-pl: the paper's recipe. Every key below wins over the preset's
  data:
    name: {data}              # digits needs no download; mnist, fashion-mnist, cifar10
    partition: {partition}    # or iid, dirichlet {{alpha}}, counts {{file}}, drawn
  model: {{name: {model}}}          # or mlp, resnet8
  # algorithm: {{lr: 1.0, local_steps: 2, density: {{conv: 0.5, linear: 0.9}}}}   # the preset's
  # codec: auto              # or bitpack, range, delta, context; all lossless
  # mode: sync               # deadline: wait for those who are connected; async: wait for nobody
  # deadline: 60             # seconds that a round waits for a neighbour; none: until it is back
  # checkpoint_every: 5      # rounds; 0: never
  # evaluate_every: 1        # rounds; without it evaluation takes a tenth of the compute at most

# What differs by peer: a profile (server, phone, single-board, microcontroller, or a file beside this one), or keys.
# peers:
#   1: {{profile: phone}}
#   2: {{batch: 32, density: {{conv: 0.3, linear: 0.9}}}}
"""
