"""The installed package: what the wheel holds, and that every install command of the Dockerfile gives a working environment."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from packaging.requirements import Requirement

from ovr import Client
from ovr.serving import embedded
from ovr.serving.repository import publish
from tests.bundles import small_bundle
from tests.export.sample import sample_bundle, sample_model
from tests.native import tritonserver_on_path

ROOT = Path(__file__).resolve().parent.parent


def stage(name):
    """Return the instructions of a stage of the Dockerfile as (word, rest) pairs."""
    text = (ROOT / "Dockerfile").read_text()
    body = re.split(r"^FROM .*$", text.partition(f" AS {name}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
    return [tuple(line.split(maxsplit=1)) for line in body.splitlines() if line and not line.startswith("#")]


def clean_env():
    """Return the environment of a process that starts afresh; pip leaves compiling to the first import, of few of its files."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}
    return kept | {"PIP_NO_COMPILE": "0"}  # 0 turns this option on: https://pip.pypa.io/en/stable/topics/configuration/


def run(command, cwd):
    done = subprocess.run(command, cwd=cwd, env=clean_env(), capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def install(name, folder, python=sys.executable):
    """Copy and install what a stage of the Dockerfile copies and installs, into an empty environment; return its bin/.

    What a stage has below /opt/ovr is below `folder`.
    """
    source = folder / "source"
    source.mkdir()
    run([python, "-m", "venv", str(folder / "venv")], folder)
    for word, rest in stage(name):
        if word == "COPY":
            *files, target = rest.split()
            for file in files:
                copy = shutil.copytree if (ROOT / file).is_dir() else shutil.copy
                copy(ROOT / file, source / (target if (ROOT / file).is_dir() else file))
        elif word == "RUN" and rest.startswith("python"):
            program, *arguments = (part.replace("/opt/ovr", str(folder)) for part in shlex.split(rest))
            run([folder / "venv" / "bin" / program, *arguments], source)
    shutil.rmtree(source)  # what is installed must not need it
    return folder / "venv" / "bin"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    run([sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(ROOT)], folder)
    (file,) = folder.glob("*.whl")
    return zipfile.ZipFile(file)


def test_the_wheel_holds_the_package_and_its_configuration_and_nothing_else(wheel):
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    sources = [Path(p) for p in run(["git", "ls-files", "-co", "--exclude-standard", "ovr", "conf"], ROOT).splitlines()]
    assert names == {f"ovr/{path}" if path.parts[0] == "conf" else str(path) for path in sources if (ROOT / path).is_file()}


def test_the_wheel_has_the_licence_and_the_command(wheel):
    files = {Path(name).name: name for name in wheel.namelist() if ".dist-info/" in name}
    assert "Apache License" in wheel.read(files["LICENSE"]).decode()
    assert "ovr = ovr.cli.main:main" in wheel.read(files["entry_points.txt"]).decode()


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_installed_in_an_empty_environment_it_trains_from_any_directory(tmp_path):
    bin_dir = install("train", tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    run([bin_dir / "python", "-m", "pip", "check"], elsewhere)
    run([bin_dir / "ovr", "train", "experiment=digits", "trainer.max_epochs=2", "hydra.run.dir=run"], elsewhere)
    assert (elsewhere / "run" / "bundle" / "manifest.json").is_file()
    run([bin_dir / "ovr", "export", "bundle=run/bundle", "out=onnx"], elsewhere)
    run([bin_dir / "ovr", "publish", "bundle=run/bundle", "repository=repository"], elsewhere)
    assert {path.name for path in elsewhere.iterdir()} == {"run", "onnx", "repository"}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_edge_environment_predicts_without_torch(tmp_path):
    sample_bundle(tmp_path / "bundle", sample_model(num_heads=3), ["a", "b", "c"])
    bin_dir = install("edge", tmp_path)
    code = (
        "import sys, numpy as np\n"
        "from ovr import EdgePredictor\n"
        "for path in ('bundle', 'bundle/fused/model.onnx'):\n"
        "    prediction = EdgePredictor(path).predict(np.ones((2, 1, 8, 8)))\n"
        "    assert prediction.prob_BK.shape == (2, 3)\n"
        "assert not {'torch', 'hydra', 'onnx', 'tritonclient'} & set(sys.modules)\n"
        "from ovr import Client\n"
        "from ovr.errors import ConfigError\n"
        "Client('http://localhost:1').close()\n"
        "try:\n"
        "    Client('grpc://localhost:1')\n"
        "except ConfigError as error:\n"
        "    print(error)\n"
    )
    assert "pip install 'ovr[client]'" in run([bin_dir / "python", "-c", code], tmp_path)
    (tmp_path / "x.jsonl").write_text(f"{[[[0.0] * 8] * 8]}\n")
    assert "row,label,name" in run([bin_dir / "python", "-m", "ovr.edge", "bundle", "x.jsonl"], tmp_path)
    assert not re.search("torch|hydra|lightning|triton", run([bin_dir / "python", "-m", "pip", "list"], tmp_path))
    done = subprocess.run([bin_dir / "ovr", "predict", "bundle=bundle"], cwd=tmp_path, capture_output=True, text=True, check=False)
    said = (
        "error: this command needs hydra, which is not installed: pip install 'ovr[train]', or 'ovr[serve]' for what needs no torch"
    )
    assert done.stderr == f"{said}\n"


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("numpy", ["numpy<2", "numpy>=2"])
@pytest.mark.parametrize("version", ["3.10", "3.11", "3.12", "3.13"])
def test_the_edge_predictor_runs_on_every_python_and_numpy_that_it_names(tmp_path, version, numpy):
    python = next((path for path in pythons() if runs(path, version)), None)
    if python is None:
        pytest.skip(f"there is no Python {version}")
    if version == "3.13" and numpy == "numpy<2":
        pytest.skip("numpy 1.26 is not made for Python 3.13")
    sample_bundle(tmp_path / "bundle", sample_model(num_heads=3), ["a", "b", "c"])
    (tmp_path / "x.jsonl").write_text(f"{[[[0.0] * 8] * 8]}\n")
    run([python, "-m", "venv", "venv"], tmp_path)
    bin_dir = tmp_path / "venv" / "bin"
    run([bin_dir / "python", "-m", "pip", "install", f"{ROOT}[edge]", numpy], tmp_path)
    assert "row,label,name" in run([bin_dir / "python", "-m", "ovr.edge", "bundle", "x.jsonl"], tmp_path)


def pythons():
    """Return the Python programs of this machine: those on PATH, and those that pyenv keeps beside it."""
    kept = (Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions").glob("*/bin/python3")
    return [*filter(None, (shutil.which(f"python3.{minor}") for minor in range(10, 14))), *kept]


def runs(python, version):
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    return done.returncode == 0 and done.stdout.strip() == version


def test_the_triton_image_has_what_routers_import_in_versions_that_are_tested():
    wanted = [Requirement(text) for text in shlex.split(next(rest for word, rest in stage("triton") if word == "RUN"))[4:]]
    tested = {"numpy": embedded.NUMPY_VERSION, "pillow": embedded.PILLOW_VERSION, "tokenizers": embedded.TOKENIZERS_VERSION}
    assert {requirement.name for requirement in wanted} == {*tested}
    assert all(requirement.specifier.contains(tested[requirement.name]) for requirement in wanted)
    assert not next(r for r in wanted if r.name == "numpy").specifier.contains("2.0")


@pytest.mark.parametrize("name", ["publish", "triton"])
def test_a_volume_for_the_repository_belongs_to_who_publishes(name):
    words = [rest for word, rest in stage(name) if word in ("RUN", "USER")]
    assert words.index("install -d -o 1000 -g 1000 /repository") < len(words) - 1  # by root
    assert words[-1] in ("1000", "triton-server")


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.triton
@pytest.mark.timeout(900)
def test_the_triton_environment_serves_with_a_python_of_its_own_beside_the_models(tmp_path):
    """As in NVIDIA's container: Python 3.12 where there is one, numpy below 2 for the models, and a tritonserver on PATH."""
    python = next((path for path in pythons() if runs(path, "3.12")), sys.executable)
    bin_dir = install("triton", tmp_path, python)
    assert "numpy 1.26" in run(
        [bin_dir / "python", "-c", "import numpy, PIL, tokenizers; print('numpy', numpy.__version__)"], tmp_path
    )
    own = tmp_path / "env" / "bin"
    assert "No broken requirements" in run([bin_dir / "python", "-m", "pip", "--python", own / "python", "check"], tmp_path)
    publish(small_bundle(tmp_path / "bundle"), tmp_path / "repository")
    program = tritonserver_on_path(tmp_path)
    settings = [f"{name}_port=0" for name in ("http", "grpc", "metrics", "health")]
    command = [own / "ovr", "serve", f"repository={tmp_path / 'repository'}", "install=false", "allow_old_server=true", *settings]
    env = clean_env() | {"PATH": f"{program.parent}:{os.environ['PATH']}", "XDG_STATE_HOME": str(tmp_path / "state")}
    with subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            told = dict(line.split() for line in iter(process.stdout.readline, "ready; stop with Ctrl-C\n") if line)
            with Client(told["HTTP"]) as client:
                assert client.predict(np.zeros((2, 6), np.float32)).prob_BK.shape == (2, 3)
        finally:
            process.terminate()
            _, stderr = process.communicate(timeout=60)
    assert (process.returncode, "Traceback" in stderr) == (0, False), stderr
    assert f"serving with {program}" in stderr


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_publish_environment_signs_verifies_and_publishes_without_torch(tmp_path):
    sample_bundle(tmp_path / "bundle", sample_model(num_heads=3), ["a", "b", "c"])
    bin_dir = install("publish", tmp_path)
    for command in ("ecparam -name prime256v1 -genkey -noout -out team.pem", "ec -in team.pem -pubout -out team.pub"):
        run(["openssl", *command.split()], tmp_path)
    run([bin_dir / "ovr", "sign", "bundle=bundle", "key=team.pem"], tmp_path)
    args = ["bundle=bundle", "repository=repository/models", "serving=gpu", "require_signature=true", "trusted_keys=[team.pub]"]
    run([bin_dir / "ovr", "publish", *args], tmp_path)
    assert (tmp_path / "repository" / "models" / "ovr" / "1" / "card.json").is_file()
    assert "torch" not in run([bin_dir / "python", "-m", "pip", "list"], tmp_path)


def test_the_hooks_run_what_lint_runs():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert [repo["repo"] for repo in config["repos"]] == ["local"]
    programs = {Path(hook["entry"].split()[0]).name for repo in config["repos"] for hook in repo["hooks"]}
    recipe = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
    assert programs == {Path(line.split()[0]).name for line in recipe.splitlines()}


def test_make_help_lists_the_targets():
    text = run(["make", "help"], ROOT)
    assert {"setup", "demo", "test", "lint", "bench", "clean"} <= set(re.findall(r"make (\w+)", text))


def test_a_machine_without_a_suitable_python_is_told_so(tmp_path):
    done = subprocess.run(
        ["make", "setup", "PYTHON=", f"VENV={tmp_path / 'venv'}"],
        cwd=ROOT,
        env=clean_env(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode != 0
    assert "error: no Python 3.11 or 3.12 found; say PYTHON=/path/to/python3.11" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_clean_removes_the_servers_that_make_installed_and_no_others(tmp_path):
    (tmp_path / "checkout" / ".venv").mkdir(parents=True)
    (tmp_path / "checkout" / "triton_repo" / "demo").mkdir(parents=True)
    (tmp_path / "checkout" / "triton_repo" / "README.md").touch()
    shutil.copy(ROOT / "Makefile", tmp_path / "checkout")
    for name in ("pytriton-ours", "pytriton-theirs"):
        (tmp_path / "the cache" / name).mkdir(parents=True)
    (tmp_path / "checkout" / ".venv" / ".servers").write_text(f"{tmp_path / 'the cache' / 'pytriton-ours'}\n")
    run(["make", "clean"], tmp_path / "checkout")
    assert [path.name for path in (tmp_path / "the cache").iterdir()] == ["pytriton-theirs"]
    left = {path.relative_to(tmp_path / "checkout").as_posix() for path in (tmp_path / "checkout").rglob("*")}
    assert left == {"Makefile", "triton_repo", "triton_repo/README.md"}


def test_ci_runs_make_test():
    assert "make test" in (ROOT / ".ci" / "run").read_text()
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
