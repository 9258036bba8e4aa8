"""The command line as a user meets it: what it prints, and how it leaves."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import PATIENCE, Command, begin, icpctl_command, refused
from small_runs import write_photos

import icpctl
from icpctl.runs import checkpoint

SMALL = ["resnet20", "digits", "--train-size", "160", "--val-fraction", "0.2", "--epochs", "2", "--steps", "2"]


def test_the_main_job_from_training_to_report(tmp_path: Path) -> None:
    trained = icpctl_command("train", *SMALL, "--optimizer", "ademamix", "-o", "results", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    (run,) = (tmp_path / "results").iterdir()
    assert "epoch 2/2" in trained.stdout
    assert "f1_macro" in trained.stdout
    assert run.name in trained.stdout
    assert "digits: 1,437 training and 360 test images of 10 classes." in trained.stdout
    assert "Next: the same command with `--method plain` trains the baseline" in trained.stderr

    again = icpctl_command("train", *SMALL, "--optimizer", "ademamix", "-o", "results", cwd=tmp_path)
    assert "finished already" in again.stdout
    assert "epoch 1/2" not in again.stdout

    evaluated = icpctl_command("eval", f"results/{run.name}", cwd=tmp_path)
    assert evaluated.returncode == 0, evaluated.stderr
    assert "accuracy_top5" in evaluated.stdout
    assert (run / "eval.csv").read_text().startswith("run_id,checkpoint,dataset,split,samples,metric,value\n")
    single = icpctl_command("eval", f"results/{run.name}/checkpoints/best.pt", "--split", "val", cwd=tmp_path)
    assert single.returncode == 0, single.stderr

    ablated = icpctl_command("ablate", *SMALL[:-2], "--grid", "steps=1,2", "-o", "results", cwd=tmp_path)
    assert ablated.returncode == 0, ablated.stderr
    assert ablated.stdout.count(": running") == ablated.stdout.count(": finished") == 2  # steps=2 was there
    assert "Differences in accuracy" in ablated.stdout
    assert re.search(r"3/3 .*: finished, accuracy [0-9.]+% \[", ablated.stdout)
    assert (tmp_path / "results" / "report.html").exists()
    assert "Written: results/report.html" in ablated.stderr
    baseline = icpctl_command("train", *SMALL, "--method", "plain", "-o", "results", cwd=tmp_path)
    assert "Next: train a method with the same settings" in baseline.stderr
    again = icpctl_command("train", *SMALL, "--optimizer", "ademamix", "-o", "results", cwd=tmp_path)
    assert "Next: `icpctl report results` compares the run with its baseline" in again.stderr

    reported = icpctl_command("report", "results/", cwd=tmp_path)
    assert reported.returncode == 0, reported.stderr
    assert (tmp_path / "results" / "runs.csv").read_text().count("\n") == 4
    for format in ("csv", "markdown", "latex", "json"):
        output = icpctl_command("report", "results", "--format", format, cwd=tmp_path)
        assert output.returncode == 0
        assert "ademamix" in output.stdout.lower()
        if format == "json":
            assert len({row["group_id"] for row in json.loads(output.stdout)["summary"]}) == 3


def test_the_second_task_from_training_to_figures(tmp_path: Path) -> None:
    features = icpctl_command("train", *SMALL, "--optimizer", "none", "-o", "features", cwd=tmp_path)
    assert features.returncode == 0, features.stderr
    (classifier,) = (tmp_path / "features").iterdir()
    ablated = icpctl_command(
        "ablate",
        "vae",
        *SMALL[1:],
        "--grid",
        "optimizer=adam",
        "--fid-features",
        f"features/{classifier.name}",
        cwd=tmp_path,
    )
    assert ablated.returncode == 0, ablated.stderr
    assert "SSIM" in ablated.stdout
    assert f"FID and KID (a): in the features of {classifier.name}" in " ".join(ablated.stdout.split())
    run = next((tmp_path / "results").glob("vae-digits-adam*"))
    recorded = {line.split(",")[3].rpartition("-")[0] for line in (run / "metrics.csv").read_text().splitlines()}
    assert {
        f"{kind}_{of}_by_{classifier.name}" for kind in ("fid", "kid") for of in ("prior", "reconstruction")
    } <= recorded
    assert "FID is biased" in ablated.stdout + ablated.stderr  # 64 features, 360 images

    evaluated = icpctl_command(
        "eval", f"results/{run.name}", "--samples", "30", "--fid-features", f"features/{classifier.name}", cwd=tmp_path
    )
    assert evaluated.returncode == 0, evaluated.stderr
    assert "whose covariance is singular" in evaluated.stderr
    (tmp_path / "features").rename(tmp_path / "elsewhere")
    evaluated = icpctl_command("eval", f"results/{run.name}", cwd=tmp_path)
    assert evaluated.returncode == 0
    assert "FID and KID are missing. --fid-features" in evaluated.stderr  # the run's own are gone
    assert "missing.pth: No such file" in refused(
        "eval", f"results/{run.name}", "--fid-weights", "missing.pth", cwd=tmp_path
    )
    rows = (tmp_path / "results" / run.name / "eval.csv").read_text()
    assert rows.count(f",30,fid_prior_by_{classifier.name}-") == 1  # and a digest of its weights
    assert rows.count(",ssim,") == 2

    reported = icpctl_command("report", "results", "--figures", cwd=tmp_path)
    assert reported.returncode == 0, reported.stderr
    drawn = {file.name for file in (tmp_path / "results" / "figures").iterdir()}
    assert {"figure1.png", "figure1.svg", "figure1.csv"} <= drawn
    assert any(name.startswith("figure3-digits-") and name.endswith(".png") for name in drawn)
    again = icpctl_command("report", "results", cwd=tmp_path)
    assert "figures" not in again.stderr  # they are no damaged run


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train", "resnet21", "digits"], "Did you mean 'resnet20'"),
        (["train", "resnet20", "digts"], "Did you mean 'digits'"),
        (["train", "resnet20", "digits", "--optimizer", "adams"], "Did you mean 'adam'"),
        (
            ["train", "resnet20", "digits", "--optimizer", "adamw"],
            "Input optimizer of the perturbation; none is the same as --method plain. 'adamw' is a value of --model-optimizer.",
        ),
        (["train", "resnet20", "digits", "--steps", "0"], "--steps is 0"),
        (["train", "resnet20", "digits", "--steps", "many"], "--steps got 'many'"),
        (["train", "resnet20", "digits", "--icp-lr", "-1"], "--icp-lr got '-1': it must be above 0"),
        (["train", "resnet20", "digits", "--epochs", "0"], "--epochs got '0': it must be at least 1. Number of"),
        (["train", "resnet20", "digits", "--epochs", "3.5"], "--epochs got '3.5': it must be a whole number."),
        (
            ["train", "resnet-20", "digits"],
            "MODEL got 'resnet-20': it is not valid; did you mean resnet20? resnet20/32",
        ),
        (["train", "resnet20", "digits", "--icp-lr", "nan"], "finite"),
        (["train", "resnet20", "digits", "--epochs", "5", "--warmup-epochs", "5"], "--warmup-epochs is 5 of 5"),
        (
            ["train", "resnet20", "digits", "--layers", "layer1,layer4"],
            "no module 'layer4'. Near it: layer3, layer2, layer1",
        ),
        (["train", "resnet20", "digits", "--device", "cuda:9"], "--device cpu"),
        (["train", "resnet20", "digits", "--train-size", "5000"], "1437"),
        (["train", "resnet20", "digits", "--config", "missing.toml"], "missing.toml"),
        (["train", "digits"], "digits is a data set; the order is MODEL DATASET, for example resnet20 digits."),
        (["train", "fashion-mnist", "vae"], "the order is MODEL DATASET, for example vae fashion-mnist."),
        (["train", "resnet20", "resnet32"], "resnet32 is a model; the order is MODEL DATASET"),
        (["ablate", "folder:imgs", "--seeds", "3"], "folder:imgs is a data set; the order is MODEL DATASET"),
        (["train", "resnet20", "/nowhere/imgs"], "is no data set, and no folder. Images in a folder are folder:PATH"),
        (
            ["train", "--learning-rate", "1"],
            "No such option: --learning-rate. Did you mean --lr? `icpctl train --help` shows",
        ),
        (["train", "--eta", "1"], "Did you mean --icp-lr"),
        (["train", "--model", "resnet20"], "MODEL and DATASET are given without a name"),
        (["report", "--model", "resnet20"], "No such option: --model. `icpctl report --help` shows"),
        (["train", "resnet20", "digits", "--method", "baseline"], "Did you mean 'plain'?"),
        (
            ["train", "resnet20", "digits", "--method", "none"],
            "Unknown value for --method: 'none'. It can be one of: byot,",
        ),
        (["train", "--clip", "1"], "Did you mean --clip-grad-norm?"),
        (["train", "--gradient-clip", "1"], "Did you mean --clip-grad-norm?"),
        (["train", "--batch", "1"], "Did you mean --batch-size?"),
        (["train", "--no-quick"], "No such option: --no-quick."),
        (["train", "--seeds", "3"], "No such option: --seeds. It belongs to `icpctl ablate`."),
        (["train", "--controls"], "It belongs to `icpctl ablate`."),
        (["eval", "x", "--where", "x"], "It belongs to `icpctl ablate` and `icpctl report`."),
        (["report", "--no-fast"], "It belongs to `icpctl train` and `icpctl ablate`."),
        (
            ["train", "resnet20", "digits", "--output", "/proc/nowhere"],
            "/proc/nowhere cannot be made there. Take another",
        ),
        (["train", "resnet20", "folder:nowhere"], "nowhere"),
        (["train", "vae", "digits", "--image-size", "20"], "give one of 16, 32, 64"),
        (["train", "vae", "digits", "--crop", "box"], "only cub has them"),
        (["train", "vae", "digits", "--fid-features", "nowhere"], "--fid-features"),
        (["train", "vae", "digits", "--fid-weights", "nowhere.pth"], "nowhere.pth: No such file"),
        (["train", "vae", "digits", "--fid-weights", "a.pth", "--fid-features", "b"], "give one of them"),
        (["train", "vae", "digits", "--stem", "cifar"], "takes its own first layers"),
        (["ablate", "resnet20", "digits", "--grid", "steps"], "--grid steps"),
        (["ablate", "resnet20", "digits", "--grid", "stps=1,2"], "Did you mean 'steps'"),
        (["ablate", "resnet20", "digits", "--grid", "steps=1,0"], "steps=0"),
        (["ablate", "resnet20", "digits", "--grid", "model=resnet20,resnet21"], "resnet21"),
        (["eval", "results/none"], "results/none"),
        (["report", "nowhere"], "nowhere"),
        (["report", "."], "icpctl train"),
    ],
    ids=lambda value: " ".join(value[1:]) if isinstance(value, list) else "",
)
def test_bad_input_is_refused_and_nothing_is_written(arguments: list[str], expected: str, tmp_path: Path) -> None:
    assert expected in refused(*arguments, cwd=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("where", ["imgs", "./imgs", "{}/imgs"])
def test_a_folder_in_the_place_of_a_data_set_is_told_its_form(where: str, tmp_path: Path) -> None:
    (tmp_path / "imgs").mkdir()
    given = where.format(tmp_path)
    assert f"Write folder:{given} for" in refused("train", "resnet20", given, cwd=tmp_path)


def test_a_configuration_file_of_the_same_names_and_the_command_line_wins(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(
        'model = "resnet20"\ndataset = "digits"\nepochs = 1\ntrain-size = 160\noptimizer = "none"\nseed = 3\n'
    )
    result = icpctl_command("train", "--config", "run.toml", "--seed", "4", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    config = icpctl.RunConfig(dataset="digits", epochs=1, train_size=160, optimizer="none", seed=4)
    assert (tmp_path / "results" / config.run_id / "metrics.csv").exists()
    for text, message in (
        ("steps = [", "not valid TOML"),
        ("setps = 3", "Did you mean 'steps'"),
        ("steps = [1]", "--steps"),
    ):
        file.write_text(text)
        assert message in refused("train", "resnet20", "digits", "--config", "run.toml", cwd=tmp_path)


def test_no_data_and_no_network_says_where_it_looked(tmp_path: Path) -> None:
    proxies: dict[str, Any] = dict.fromkeys(
        ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9"
    )
    message = refused("train", "--epochs", "1", "--data-dir", "data", cwd=tmp_path, **proxies)
    assert "cifar100" in message
    assert "data" in message
    assert not (tmp_path / "results").exists()


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos")
    broken = tmp_path / "photos" / "train" / "dog" / "2.png"
    broken.write_bytes(broken.read_bytes()[:150])
    message = refused("train", "resnet20", "folder:photos", "--val-fraction", "0", cwd=tmp_path)
    assert "2.png" in message
    assert not (tmp_path / "results").exists()


def test_a_results_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("")
    assert "--output" in refused("train", *SMALL, cwd=tmp_path)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_saves_and_the_same_command_goes_on(number: signal.Signals, status: int, tmp_path: Path) -> None:
    command = ["train", *SMALL, "--epochs", "60"]

    def until(process: Command, text: str) -> str:
        assert process.stdout is not None
        return next(line for line in process.stdout if text in line)

    process = begin(*command, cwd=tmp_path, fresh=number == signal.SIGINT)
    until(process, "epoch  2/60")
    process.send_signal(number)
    _, complaints = process.communicate(timeout=PATIENCE)
    assert process.returncode == status, complaints
    assert complaints.index("Stopping, saving") < complaints.index("Saved")
    (run,) = (tmp_path / "results").iterdir()
    assert json.loads((run / "status.json").read_text())["state"] == "interrupted"
    saved = checkpoint.load(run / "checkpoints" / "last.pt")
    assert saved["epoch"] >= 2

    more = begin(*command, cwd=tmp_path)
    assert f"epoch {saved['epoch'] + 1}" in until(more, "Resuming")
    more.kill()
    more.communicate()


def test_quietly_and_as_json(tmp_path: Path) -> None:
    silent = icpctl_command("train", *SMALL, "--quiet", cwd=tmp_path)
    assert (silent.returncode, silent.stdout) == (0, "")
    (run,) = (tmp_path / "results").iterdir()
    told = json.loads(icpctl_command("train", *SMALL, "--json", cwd=tmp_path).stdout)
    assert (told["run_id"], told["path"], told["trained"]) == (run.name, f"results/{run.name}", False)
    rows = [line.split(",") for line in (run / "metrics.csv").read_text().splitlines()]
    assert [run.name, "1", "test", "accuracy", str(told["metrics"]["test"]["accuracy"])] in rows
    measured = icpctl_command("eval", f"results/{run.name}", "--json", cwd=tmp_path)
    assert json.loads(measured.stdout)["metrics"]["accuracy"] == told["metrics"]["test"]["accuracy"]
    assert (run / "eval.csv").exists()
    assert icpctl_command("eval", f"results/{run.name}", "--quiet", cwd=tmp_path).stdout == ""
    fresh = icpctl_command("train", *SMALL, "--seed", "1", "--json", cwd=tmp_path)
    assert json.loads(fresh.stdout)["trained"] is True


def test_a_second_signal_leaves_at_once_and_more_of_them_disturb_nothing() -> None:
    code = (
        "import os, signal, sys; from icpctl.cli.stopping import stoppable\n"
        "with stoppable():\n"
        "    try:\n"
        "        for number in (15, 1, 2): os.kill(os.getpid(), number)\n"
        "        print('not at once')\n"
        "    finally:\n"
        "        for number in (2, 15, 1): os.kill(os.getpid(), number)\n"
        "        print('status written')"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (130, "status written\n")
    first, last = result.stderr.splitlines()
    assert (first, last[:23]) == ("Stopping, saving …", "Stopped without saving.")  # each once


@pytest.mark.parametrize(
    "arguments",
    [
        "--version",
        "train --help",
        "train --help-all",
        "eval --help",
        "ablate --help",
        "report --help",
        "train resnet20 --optmizer adam",
        "train resnet20 cifar100 --lr x",
        "train resnet20 cifar100 --steps -1",
        "train --config missing.toml",
        "eval",
        "report --format docx",
    ],
)
def test_help_and_errors_of_the_command_line_come_without_torch(arguments: str) -> None:
    assert not imported(*arguments.split()) & {"torch", "torchvision", "numpy", "pandas"}


@pytest.mark.parametrize("argument", ["--help", "nope"])
def test_the_names_of_the_commands_come_without_the_declarations(argument: str) -> None:
    assert not imported(argument) & {"torch", "torchvision", "numpy", "pandas", "pydantic", "icpctl.config"}


def imported(*arguments: str) -> set[str]:
    """The modules that a command imports, as Python lists them."""
    command = [sys.executable, "-X", "importtime", "-m", "icpctl", *arguments]
    listed = subprocess.run(command, capture_output=True, text=True, check=False).stderr
    modules = {line.rpartition("|")[2].strip() for line in listed.splitlines() if line.startswith("import time:")}
    assert "icpctl.cli.app" in modules
    return modules


def test_evaluating_on_other_classes_is_refused(tmp_path: Path) -> None:
    config = icpctl.RunConfig(dataset="digits", epochs=1, train_size=160, optimizer="none")
    run = icpctl.train(config, tmp_path / "results").path
    write_photos(tmp_path / "photos")
    assert "10 classes" in refused("eval", str(run), "--dataset", "folder:photos", cwd=tmp_path)
    for path in (run / "config.json", tmp_path):
        refused("eval", str(path))
    torch.save({}, tmp_path / "foreign.pt")
    assert "foreign.pt" in refused("eval", str(tmp_path / "foreign.pt"))


def test_a_pipe_that_closes_is_no_error(tmp_path: Path) -> None:
    icpctl.train(icpctl.RunConfig(dataset="digits", epochs=1, train_size=160, optimizer="none"), tmp_path)
    command = f"{sys.executable} -m icpctl report {tmp_path} --format json | head -c 1"
    result = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert result.stdout == "{"
    assert "Traceback" not in result.stderr
