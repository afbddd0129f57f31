"""Configuration and bundles of others run nothing: each way that leads to code is refused before Hydra begins."""

import pytest

from ovr.cli.calibrate import trained_calibrator
from ovr.cli.foreign import check_foreign_files
from ovr.cli.instantiate import build_recorded
from ovr.cli.main import main
from ovr.core.bundle import open_bundle
from ovr.errors import ArtifactError, ConfigError
from tests.bundles import forge, small_bundle
from tests.cli.test_main import error_of

GLOBAL = "# @package _global_\n"
CALLBACK = "{x: {_target_: site.addsitedir, sitedir: SITE}}"  # a .pth file there makes RAN
HANDLER = "{version: 1, handlers: {x: {(): torch.utils.collect_env.run, command: touch RAN}}}"
SETS = "by which Hydra could run code; a file may set run.dir, "
SAID = "in its defaults; expected options by their names, and none that fill hydra or allow_targets"


@pytest.fixture
def mine(tmp_path):
    """Return a function that writes a folder of configuration, whose payloads make `ran`."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "x.pth").write_text(f"import pathlib; pathlib.Path({str(tmp_path / 'ran')!r}).touch()\n")

    def write(files):
        for name, text in files.items():
            (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
            text = text.replace("SITE", str(tmp_path / "site")).replace("RAN", str(tmp_path / "ran"))
            (tmp_path / "mine" / name).write_text(text, encoding="utf-8")
        return tmp_path / "mine"

    yield write
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"experiment/x.yaml": f"{GLOBAL}hydra: {{callbacks: {CALLBACK}}}\n"}, f"experiment/x.yaml sets hydra.callbacks, {SETS}"),
        ({"experiment/x.yaml": f"{GLOBAL}hydra: {{job_logging: {HANDLER}}}\n"}, f"sets hydra.job_logging, {SETS}"),
        ({"experiment/x.yaml": f"{GLOBAL}hydra: {{hydra_logging: {HANDLER}}}\n"}, f"sets hydra.hydra_logging, {SETS}"),
        ({"experiment/x.yaml": f"{GLOBAL}hydra: {{launcher: {{_target_: os.system}}}}\n"}, f"sets hydra.launcher, {SETS}"),
        ({"experiment/x.yaml": f"{GLOBAL}hydra: {{sweeper: {{params: {{a: 1}}}}}}\n"}, f"sets hydra.sweeper, {SETS}"),
        ({"experiment/x.yaml": f"{GLOBAL}hydra: {{job: {{chdir: true, env_set: {{A: b}}}}}}\n"}, f"sets hydra.job.env_set, {SETS}"),
        ({"experiment/x.yaml": f"{GLOBAL}hydra: ${{a}}\n"}, f"sets hydra.*, {SETS}"),
        ({"experiment/x.yaml": f"# @package hydra.callbacks\nx: {CALLBACK}\n"}, "has the header '# @package hydra.callbacks'"),
        ({"hydra/callbacks/x.yaml": CALLBACK}, "is an option of Hydra's own settings, which run code"),
        ({"gate/evil.yaml": CALLBACK, "experiment/x.yaml": f"{GLOBAL}defaults: [/gate@hydra.callbacks: evil]\n"}, SAID),
        ({"gate/evil.yaml": CALLBACK, "experiment/x.yaml": f"{GLOBAL}defaults: ['/gate@${{p}}: evil']\n"}, SAID),
        ({"experiment/x.yaml": f"{GLOBAL}defaults: [override hydra/launcher: ours]\n"}, SAID),
        ({"experiment/x.yaml": f"{GLOBAL}defaults: [../../elsewhere/y]\n"}, SAID),
        ({"experiment/x.yaml": f"{GLOBAL}allow_targets: [subprocess.]\n"}, "sets allow_targets, which only the command line does"),
        ({"experiment/x.yaml": "a: 1\n---\nb: 1\n"}, "is not YAML"),
        (
            {"experiment/x.yaml": f"{GLOBAL}allow_targets: [o.]\n", "loss/y.yaml": f"{GLOBAL}hydra: 1\n"},
            "add allow_targets=[PREFIX] if you trust what it names; ",
        ),
    ],
)
def test_a_file_of_others_that_would_run_something_is_refused(mine, capsys, tmp_path, files, message):
    run = ["train", "--config-dir", str(mine(files)), "experiment=x", f"hydra.run.dir={tmp_path / 'run'}"]
    assert message in error_of(capsys, *run)
    assert not (tmp_path / "run").exists()


def test_the_same_holds_for_other_commands_and_for_sweeps(mine, capsys, tmp_path):
    root = mine({"gate/evil.yaml": f"{GLOBAL}hydra: {{callbacks: {CALLBACK}}}\n"})
    step = ["head", "retire", "bundle=b", f"out={tmp_path / 'out'}", "class=dog", "--config-dir", str(root), "gate=evil"]
    assert f"gate/evil.yaml sets hydra.callbacks, {SETS}" in error_of(capsys, *step)
    sweep = ["train", "-m", "--config-dir", str(root), "seed=0,1", f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    assert f"gate/evil.yaml sets hydra.callbacks, {SETS}" in error_of(capsys, *sweep)
    assert not (tmp_path / "sweep").exists()


def test_a_link_to_a_folder_elsewhere_is_refused(mine, tmp_path):
    root = mine({"train.yaml": "a: 1\n"})
    (root / "here").symlink_to(root)
    check_foreign_files(root)
    (root / "loss").symlink_to(tmp_path)
    with pytest.raises(ConfigError, match="mine/loss is a link to a directory elsewhere, whose files would be read unchecked"):
        check_foreign_files(root)


def test_a_run_that_is_resumed_brings_no_settings_of_hydra_and_no_targets(mine, capsys, tmp_path):
    record = {"run/.hydra/config.yaml": "seed: 0\nresume: null\n", "run/.hydra/hydra.yaml": f"hydra: {{callbacks: {CALLBACK}}}\n"}
    resume = ["train", f"resume={mine(record) / 'run'}"]
    assert "hydra.callbacks" not in error_of(capsys, *resume)  # nobody reads what Hydra wrote of itself
    mine({"run/.hydra/config.yaml": f"resume: null\nhydra: {{callbacks: {CALLBACK}}}\n"})
    assert f"config.yaml sets hydra.callbacks, {SETS}" in error_of(capsys, *resume)
    mine({"run/.hydra/config.yaml": "defaults: [hydra]\nresume: null\n"})
    assert SAID in error_of(capsys, *resume)
    mine({"run/.hydra/config.yaml": "resume: null\nallow_targets: [subprocess.]\n"})
    assert "config.yaml sets allow_targets, which only the command line does" in error_of(capsys, *resume)
    assert "allow_targets" not in error_of(capsys, *resume, "allow_targets=[subprocess.]", "seed=x")
    mine({"run/.hydra/config.yaml": "a: 1\n"})
    directly = ["train", "--config-path", resume[1].removeprefix("resume=") + "/.hydra", "--config-name", "hydra"]
    assert f"hydra.yaml sets hydra.callbacks, {SETS}" in error_of(capsys, *directly)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["+hydra.callbacks.x._target_=site.addsitedir"], "hydra.callbacks (x): ovr runs none"),
        (["++hydra.launcher._target_=subprocess.Popen"], "hydra.launcher._target_ is 'subprocess.Popen'; expected a launcher"),
        (
            ["hydra.job_logging.handlers.file.class=os.system"],
            "hydra.job_logging.handlers.file.class is 'os.system', which logging",
        ),
        (["loss@hydra.hydra_logging.handlers.x=call"], "hydra.hydra_logging.handlers.x.() is 'os.system', which logging"),
        (["hydra.job_logging.handlers.console.stream='ext://antigravity'"], "'ext://antigravity', which logging would import"),
        (["loss@hydra.callbacks=mine"], "hydra.callbacks (_target_, beta): ovr runs none"),
        (["-m", "loss@hydra.callbacks=mine,bce"], "hydra.callbacks (_target_, beta): ovr runs none"),
        (
            ["-m", "allow_targets=[a.],[b.]"],
            "allow_targets is ['a.'], and the command line gives []; only the command line sets it",
        ),
    ],
)
def test_what_is_composed_is_checked_wherever_it_comes_from(mine, capsys, args, message):
    root = mine({"loss/mine.yaml": "_target_: site.addsitedir\nbeta: 1\n", "loss/call.yaml": "(): os.system\n"})
    args = [arg.replace("loss@", "+loss@") for arg in args]
    assert message in error_of(capsys, "train", "--config-dir", str(root), *args)


def test_where_a_run_lies_and_a_launcher_of_ones_own_may_stand_in_files(mine, capsys):
    text = (
        f"{GLOBAL}defaults: [override /hydra/job_logging: console]\nseed: 5\nallow_targets: []\n"
        "hydra: {run: {dir: out}, sweep: {dir: a, subdir: b}, job: {chdir: false}, output_subdir: null}\n"
    )
    root = mine({"experiment/ours.yaml": text, "hydra/launcher/ours.yaml": "defaults: [slurm]\npartition: big\n"})
    assert main(["train", "--config-dir", str(root), "experiment=ours", "--cfg", "job", "allow_targets=[my_losses.]"]) == 0
    assert "seed: 5" in capsys.readouterr().out
    assert main(["train", "--config-dir", str(root), "hydra/launcher=ours"]) == 1
    assert "hydra/launcher=ours starts the jobs of a multirun: add -m" in capsys.readouterr().err


def test_a_bundle_runs_nothing_that_its_configuration_names(tmp_path, capsys):
    torch = pytest.importorskip("torch")

    class Runs:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"a": Runs()}, tmp_path / "evil.pt")
    load = {
        "_target_": "lightning.fabric.utilities.cloud_io._load",
        "path_or_url": str(tmp_path / "evil.pt"),
        "weights_only": False,
    }
    bundle = small_bundle(tmp_path / "bundle")
    forge(bundle.path, {}, lambda manifest: manifest["provenance"].update(config={"calibrator": load, "threshold": load}))
    step = [f"bundle={bundle.path}", f"out={tmp_path / 'out'}"]
    said = "the bundle's calibrator: _target_ lightning.fabric.utilities.cloud_io._load is not allowed, since a bundle is data"
    assert said in error_of(capsys, "calibrate", *step)
    recorded = open_bundle(bundle.path).provenance
    with pytest.raises(ConfigError, match="the bundle's threshold: _target_ lightning"):
        build_recorded(recorded["config"]["threshold"], "threshold")
    assert trained_calibrator(recorded)["_target_"] == load["_target_"]
    assert not (tmp_path / "ran").exists()


def test_a_bundle_has_no_files_of_other_kinds(tmp_path):
    bundle = small_bundle(tmp_path / "bundle")
    forge(bundle.path, {"data/evil.pt": b"x"})
    with pytest.raises(ArtifactError, match=r"data/evil.pt is of no kind that bundles have \(\.json, \.onnx, \.npy, \.npz\)"):
        open_bundle(bundle.path)
