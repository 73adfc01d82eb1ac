"""The paper's experiments at the smallest size: every arm on equal terms, in one table and one figure."""

import csv

import pytest
from tiny import use_tiny_network

from experiments import ablation, communication, validation

TINY = ["--dataset", "digits", "--model", "tiny", "--agents", "3", "--topology", "ring", "--rounds", "4"]
TINY += ["--eval-every", "2", "--seeds", "2", "--batch-size", "16"]


@pytest.fixture(autouse=True)
def tiny_network(monkeypatch):
    use_tiny_network(monkeypatch)


@pytest.mark.parametrize(
    ("experiment", "flags", "arms"),
    [
        pytest.param(validation, [], 4, marks=pytest.mark.slow),
        (ablation, [], 3),
        pytest.param(communication, ["--retentions", "0.2,0.4"], 11, marks=pytest.mark.slow),
    ],
    ids=["validation", "ablation", "communication"],
)
def test_an_experiment_leaves_a_table_and_a_figure_of_all_arms(experiment, flags, arms, tmp_path, capsys):
    out = tmp_path / "out"
    assert experiment.main([*TINY, *flags, "--out", str(out)]) == 0
    table = (out / "table.md").read_text().splitlines()
    assert table[2].startswith("| arm | accuracy, %")
    assert len(table) == 4 + arms
    assert (out / "figure.png").stat().st_size > 10_000
    with (out / "results.csv").open() as file:
        rows = {row["arm"]: row for row in csv.DictReader(file)}
    assert len(rows) == arms
    assert all(row["status"] == "done" for row in rows.values())
    if experiment is validation:
        assert [rows[f"{what}, alone"]["bitmap_mb"] for what in ("weights", "masks")] == ["", ""]
        # An entry of a mask is a bit, an entry of weights 32; weights are biases too, of which one layer has ten.
        floats = float(rows["weights, among neighbours"]["float32_mb"])
        assert floats == pytest.approx(32 * float(rows["masks, among neighbours"]["bitmap_mb"]) * 406 / 396)
    if experiment is ablation:
        # Thresholds keep what was asked for, majorities what they find.
        density = {name: float(row["density"]) for name, row in rows.items()}
        assert density["none"] == density["aggregation tensor"] != density["majority"]
    capsys.readouterr()
    assert experiment.main([*TINY, *flags, "--out", str(out), "--resume"]) == 0
    assert capsys.readouterr().out.strip().endswith("nothing is left to do")


def test_bad_retentions_are_one_line(capsys, tmp_path):
    flags = [*TINY, "--out", str(tmp_path / "out"), "--retentions"]
    for words, sentence in (("0.1,x", "--retentions must be numbers between commas"), ("0.1,2", "at arm=mce-pl, 2:")):
        assert communication.main([*flags, words]) == 2
        assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
