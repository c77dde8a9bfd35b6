"""The report as a user meets it: at the end of a run, when it is stopped, and made again."""

from __future__ import annotations

import csv
import json
import signal
from pathlib import Path

import pytest
from processes import ROOT, Done, Script
from workplace import TINY, Workplace

pytestmark = pytest.mark.end_to_end


def report(place: Workplace, *args: str | Path) -> Done:
    return Script(("-m", "base.report", *args), place.folder).wait()


def page_of(run: Path) -> str:
    return (run / "report" / "index.html").read_text(encoding="utf-8")


def predictions(run: Path) -> list[dict[str, str]]:
    with (run / "report" / "predictions.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_run_ends_with_a_report_and_a_test_adds_to_it(place: Workplace) -> None:
    done = place.run("-c", "tiny.yaml")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    (run,) = place.runs()
    assert f"report: {run.relative_to(place.folder)}/report/index.html" in done.stdout
    page = page_of(run)
    assert "finished" in page
    assert "Predictions: validation data" in page
    assert "Predictions: test data" not in page
    assert len(predictions(run)) == 960
    correct = sum(row["target"] == row["prediction"] for row in predictions(run))
    with (run / "metrics.csv").open(newline="") as file:
        losses = [float(row["valid/loss"]) for row in csv.DictReader(file)]
    with (run / "metrics.csv").open(newline="") as file:
        best = list(csv.DictReader(file))[losses.index(min(losses))]
    assert correct / 960 == pytest.approx(float(best["valid/accuracy"]))

    done = place.run("test.py", "-r")
    assert done.returncode == 0, done.stderr
    page = page_of(run)
    assert "Predictions: validation data" in page
    assert "Predictions: test data" in page
    rows = [row for row in predictions(run) if row["part"] == "test"]
    correct = sum(row["target"] == row["prediction"] for row in rows)
    assert correct / len(rows) == pytest.approx(
        json.loads(done.stdout.splitlines()[-1])["accuracy"]
    )


def test_a_stopped_run_has_a_page_and_keeps_its_code(place: Workplace) -> None:
    script = place.start("-c", "tiny.yaml", "--epochs", "500")
    script.wait_until(lambda: any(run.joinpath("metrics.csv").exists() for run in place.runs()))
    script.signal(signal.SIGTERM)
    done = script.wait()
    assert done.returncode == 128 + signal.SIGTERM
    assert "resume by" in done.stderr
    (run,) = place.runs()
    page = page_of(run)
    assert "interrupted" in page
    assert "<h2>Curves</h2>" in page
    assert not (run / "report" / "predictions.csv").exists()

    # What it has learned can be looked at all the same.
    again = report(place, run)
    assert again.returncode == 0, again.stderr
    assert len(predictions(run)) == 960
    assert "interrupted" in page_of(run)


def test_a_report_is_made_again_with_the_same_predictions(place: Workplace) -> None:
    run = place.train("--set", "trainer.test=true", "trainer.report=false")
    assert sorted(each.name for each in (run / "report").glob("[!t]*")) == []
    done = report(place, "saved/tiny")
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.splitlines()[-1]) == Path(
        "saved", "tiny", run.name, "report/index.html"
    )
    first = predictions(run)
    assert {row["part"] for row in first} == {"valid", "test"}
    assert report(place, run.name[-8:]).returncode == 0  # by a unique part
    assert predictions(run) == first
    test = json.loads((run / "report" / "test.json").read_text())
    assert test["accuracy"] > 0


def test_a_run_without_test_data_is_predicted_again(place: Workplace) -> None:
    own = "{type: CsvDataset, args: {file: table.csv, target: kind, missing: mean}}"
    lines = [
        f"{'' if number == 5 else number},{number % 7},{'ab'[number % 2]}" for number in range(40)
    ]
    (place.folder / "table.csv").write_text("\n".join(["one,two,kind", *lines]) + "\n")
    model = "{type: MLP, args: {n_inputs: null, hidden: [4], n_outputs: 2}}"
    loader = f"{{type: DatasetLoader, args: {{dataset: {own}, batch_size: 8, split: 0.3}}}}"
    run = place.train("--set", f"model={model}", f"data_loader={loader}")
    before = predictions(run)
    (run / "report" / "predictions.csv").unlink()
    done = report(place, run)
    assert (done.returncode, done.stderr) == (0, "")
    assert predictions(run) == before
    assert "table.csv:" in page_of(run)
    assert "No new predictions" not in page_of(run)
    (place.folder / "table.csv").write_text("\n".join(["one,two,kind", *lines[:-1]]) + "\n")
    assert "the data changed since the run began" in report(place, run).stderr
    assert predictions(run) == before


def test_without_its_data_a_page_is_made_of_the_files(place: Workplace) -> None:
    data = place.folder / "data"
    data.mkdir()
    (data / "digits.npz").write_bytes((ROOT / "data" / "digits.npz").read_bytes())
    text = TINY.replace(str(ROOT / "data"), str(data))
    (place.folder / "tiny.yaml").write_text(text, encoding="utf-8")
    run = place.train()
    before = predictions(run)
    (data / "digits.npz").unlink()
    done = report(place, run)
    assert done.returncode == 0
    assert "No new predictions" in done.stderr
    page = page_of(run)
    assert "No new predictions" in page
    assert "digits.npz" in page
    assert "Predictions: validation data" in page
    assert predictions(run) == before


def test_runs_are_compared_on_one_page(place: Workplace) -> None:
    runs = [place.train("--epochs", "2"), place.train("--epochs", "2", "--lr", "1e-4")]
    kept = {path: path.read_bytes() for run in runs for path in run.rglob("*") if path.is_file()}
    done = report(place, *runs)
    assert done.returncode == 0, done.stderr
    path = Path("saved", "tiny", f"comparison_{runs[0].name}+{runs[1].name}", "index.html")
    assert Path(done.stdout.splitlines()[-1]) == path
    page = (place.folder / path).read_text()
    assert '<th scope="row">optimizer.args.lr</th>' in page
    assert "trainer.epochs</th>" not in page  # the same in both
    names = [
        {row["id"]: row["target"] == row["prediction"] for row in predictions(r)} for r in runs
    ]
    only_a = sum(names[0][key] and not names[1][key] for key in names[0])
    only_b = sum(names[1][key] and not names[0][key] for key in names[0])
    row = page.partition("Predictions: validation data</h2>")[2]
    cells = [cell.partition(">")[2].partition("<")[0] for cell in row.split("<td")[1:9]]
    assert cells[2:6] == [
        "960",
        str(960 - only_a - only_b - int(cells[6])),
        str(only_a),
        str(only_b),
    ]
    assert {path: path.read_bytes() for path in kept} == kept
    done = report(place, *(place.folder / "saved" / "tiny").iterdir(), "-o", "both")
    assert done.returncode == 0
    assert (place.folder / "both" / "index.html").is_file()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["nowhere"], "no such file or folder"),
        (["tiny.yaml"], "not a run"),
        ([], "RUN"),
        (["--ouput", "x", "y"], "did you mean '--output'"),
    ],
)
def test_a_wrong_command_is_one_line(place: Workplace, words: list[str], text: str) -> None:
    done = report(place, *words)
    assert done.returncode == 2
    assert text in done.stderr
    assert "Traceback" not in done.stderr
    assert place.files() == set()
