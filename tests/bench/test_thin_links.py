"""``dslth bench links``: a link changes when something is learned, not what, and thinner links take longer."""

import csv
import json

from dslth.runs.folder import RunFolder
from dslth.runs.summary import summarise

LINE = ("dslth", "bench", "links", "--out", "out")


def test_links_change_when_and_not_what(commands, topology_file, tmp_path):
    links = [word for link in ("lora", "wifi") for word in ("--link", link)]
    done = commands.run(*LINE, "-t", topology_file(rounds=3), *links, "--target", "0.3", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result == json.loads((tmp_path / "out/links.json").read_text())
    found = {(row["link"], row["row"]): row for row in result["rows"]}
    assert list(found) == [(link, row) for link in ("lora", "wifi") for row in ("mce-auto", "dpsgd")]
    for row in ("mce-auto", "dpsgd"):
        lora, wifi = (found[link, row] for link in ("lora", "wifi"))
        accuracies = [[accuracy for _, accuracy in each["curve"]] for each in (lora, wifi)]
        assert accuracies[0] == accuracies[1]
        assert lora["seconds"] > 100 * wifi["seconds"] > 0
        reached = next((n for n, accuracy in enumerate(accuracies[0]) if accuracy >= 0.3), None)
        assert [each["seconds_to_target"] for each in (lora, wifi)] == [
            None if reached is None else each["curve"][reached][0] for each in (lora, wifi)
        ]
        run = summarise(RunFolder(tmp_path / f"out/runs/lora-{row}"))
        assert lora["message_bytes"] == run.message_bytes_sent
    assert found["lora", "dpsgd"]["seconds"] > 10 * found["lora", "mce-auto"]["seconds"]
    with (tmp_path / "out/links.csv").open(newline="") as file:
        assert [(row["link"], row["row"]) for row in csv.DictReader(file)] == list(found)
    assert (tmp_path / "out/links.png").read_bytes().startswith(b"\x89PNG")
