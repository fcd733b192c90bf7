"""dslth in a notebook: a real kernel runs the cells that docs/python.md tells readers to write."""

import nbformat
import pytest
from nbclient import NotebookClient

pytestmark = pytest.mark.filterwarnings("ignore")  # of zmq and asyncio in the client of the kernel

CELLS = [
    "%%writefile nets.py\n"
    "from torch import nn\n\n"
    "class Net(nn.Sequential):\n"
    "    def __init__(self, shape, classes):\n"
    "        super().__init__(nn.Linear(shape[0], 48), nn.LayerNorm(48), nn.ReLU(), nn.Linear(48, classes))\n",
    "%matplotlib inline\n"
    "import dslth\n"
    "from nets import Net\n"
    "from sklearn.datasets import load_digits\n"
    "digits = load_digits()",
    "run = dslth.run('ring', model=Net, data=(digits.data, digits.target), rounds=6, algorithm={'density': 0.5},\n"
    "                out='run', progress=True)\n"
    "run",
    "run.plot()",
    "run.rounds.groupby('round').loss.mean()",
    "class Typed(Net):\n    pass\n\ndslth.run('ring', model=Typed, out='other')",
]


def test_a_notebook_runs_peers_follows_them_and_draws(tmp_path):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
    client = NotebookClient(
        notebook, timeout=180, kernel_name="python3", resources={"metadata": {"path": tmp_path}}, allow_errors=True
    )
    client.execute()
    *told, typed = [cell.outputs for cell in notebook.cells]
    assert not [output for outputs in told for output in outputs if output.output_type == "error"], told
    shown = "".join(output.get("text", "") + output.get("data", {}).get("text/plain", "") for output in told[2])
    assert "round 6/6, personal accuracy" in shown
    assert "6 rounds, accuracy" in told[2][-1]["data"]["text/plain"]
    assert "image/png" in told[3][-1]["data"]
    assert (typed[-1].ename, "%%writefile" in typed[-1].evalue) == ("ConfigError", True)
