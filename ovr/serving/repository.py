"""Publishing a bundle into a Triton model repository. Knows where things lie in it, not how a server is run.

    ovr_scores/<N>/model.onnx                    raw rows -> all probabilities (the fused graph; with cohorts, see `scores_graph`)
    ovr_scores/<N>/labels.txt                    of the first version with these classes
    ovr/<N>/model.py, card.json, ovr/...         the router, with the files of ovr that it imports, the bundle's signatures
    backbone/<V>/model.onnx                      raw rows -> features              } layout per_head
    head_<slug>/<version>/model.onnx             features -> one probability       }
    ovr_heads/<N>/                               ensemble of the last two          }

Every version directory is staged beside the repository, renamed, and never changed. What is served is said by the configurations
alone: each names its versions, and the router and the ensemble name those that they call. A change goes through a state in which
the callees serve the old and the new version, so that at every moment, and after a crash at any, the callers find theirs. In a
running server new callees give the bundle's recorded answers before the callers go over, and so do these before the old callees go,
at once or by the next publication (see `retirement`).
"""

import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path

from ovr.core.bundle import SIGNATURES, ModelBundle
from ovr.core.class_metrics import ClassMetricsSettings
from ovr.core.cohorts import COHORT
from ovr.core.faults import MAX_TEXT_CHARS, Faults
from ovr.core.files import read_json, write_file
from ovr.core.request_log import RequestLogSettings
from ovr.core.signature_files import take_over
from ovr.errors import ArtifactError, ConfigError, OvrError, ServingError
from ovr.serving import control
from ovr.serving.contents import model_names, read_config, served_versions, versions_of
from ovr.serving.head_plan import plan_heads
from ovr.serving.locks import locked
from ovr.serving.models import Layout, models_of, router_files, served_graph
from ovr.serving.pbtxt import CARD, VERSION, InstanceKind, Scheduling, head_model_name, router_input
from ovr.serving.recorded_answers import RecordedAnswers
from ovr.serving.retirement import check_is_loaded, retire_uncalled
from ovr.serving.transition import Model, Transition, is_same

log = logging.getLogger(__name__)

MAX_OLD = 3  # versions of one model that wait for their last requests when a publication begins


@dataclass(frozen=True, slots=True)
class Published:
    """What `publish` made."""

    repository: Path
    layout: Layout
    bundle_sha256: str
    versions: dict[str, int]  # Triton model -> the version that it serves now, callees before their callers


def publish(
    bundle: ModelBundle,
    repository: Path,
    *,
    layout: Layout = "fused",
    instance_kind: InstanceKind = "KIND_CPU",
    instance_count: int = 1,
    max_batch_size: int = 256,
    max_queue_delay_us: int = 0,
    max_queue_size: int = 0,
    num_threads: int = 1,
    faults: Faults | None = None,
    class_metrics: ClassMetricsSettings | None = None,
    request_log: RequestLogSettings | None = None,
    max_text_chars: int = MAX_TEXT_CHARS,
    server: str | None = None,
    wait: bool = True,
    exist_ok: bool = False,
) -> Published:
    """Publish `bundle` into the Triton repository at `repository` and return what is served now.

    A bundle that the repository holds as an earlier version is served as that version again, with the signatures that it has by
    now; where it was signed since, publishing what is served already is no error. Whatever goes wrong until the new
    bundle is served and has given its recorded answers is taken back, and what was served is served on; a publication that was
    killed is finished by the next.

    Args:
        bundle: as `open_bundle` returned it.
        repository: made if missing; its parent must be on the same file system.
        layout: `per_head` adds the backbone, a model a head and their ensemble `ovr_heads` to the models of `fused`.
        instance_kind: of the ONNX models; the router always runs on the CPU.
        max_queue_delay_us: how long Triton may keep a request waiting for others to batch it with.
        max_queue_size: waiting requests a model; more are refused. 0: no limit.
        num_threads: of one ONNX session; 0: as many as there are cores.
        faults: what the router does about heads that do not answer; None: `Faults()`.
        class_metrics: how many classes have metrics of their own; None: `ClassMetricsSettings()`.
        request_log: which requests the router writes a line about; None: `RequestLogSettings()`.
        max_text_chars: of a row that is a text; the router refuses longer ones.
        server: HTTP address of a running server on this repository, which loads each change when it is written.
        wait: for the server to unload the old versions. Without, they stay loaded, a few at most, until the next publication or
            `settle` finds that no request needs them; where more than versions changed (classes, settings) it waits all the same.
        exist_ok: a bundle that is served there already, with these settings, is no error, and nothing is changed.

    Raises:
        ArtifactError: the bundle is served there already with these settings, another head has this head's version, or the
            repository serves another input or layout, or cohorts where this bundle has none, or none where it has; the bundle has
            no fused graph, or head shards or cohorts with layout per_head; another process is publishing. Nothing has been written
            then. Or the disk cannot be written: all was taken back.
        ConfigError: a value that cannot be used.
        ServingError: `server` is not there or serves another repository (nothing has been written), or cannot load the models, or
            they do not give the bundle's recorded answers: all was taken back.
    """
    if layout not in ("fused", "per_head"):
        raise ConfigError(f"layout is {layout!r}; expected 'fused' or 'per_head'")
    if layout == "per_head" and bundle.shards:
        raise ArtifactError(
            f"layout per_head serves a model a head, and bundle {bundle.path} keeps its {len(bundle.heads)} heads in shards; "
            "publish it with layout fused"
        )
    if layout == "per_head" and bundle.cohorts is not None:
        raise ArtifactError(
            f"layout per_head serves each head with its pooled calibration, and bundle {bundle.path} has one for each of "
            f"{bundle.cohorts.column}={', '.join(bundle.cohorts.names[:5])}; publish it with layout fused"
        )
    scheduling = Scheduling(instance_kind, instance_count, max_batch_size, max_queue_delay_us, max_queue_size, num_threads)
    repository = repository.absolute()
    if repository.resolve().is_relative_to(bundle.path.resolve()):
        raise ArtifactError(f"{repository} lies within the bundle {bundle.path}, which is never changed; choose another place")
    if server is not None:
        control.check_live(server)
    with locked(repository):
        if server is not None:
            _check_serves(server, repository)
        _check_same_use(repository, bundle, layout)
        version = _version_to_serve(repository, bundle)
        plan = plan_heads(repository, bundle, layout, faults or Faults())
        metrics, log_settings = class_metrics or ClassMetricsSettings(), request_log or RequestLogSettings()
        plan = replace(plan, metrics=metrics, request_log=log_settings, max_text_chars=max_text_chars)
        callees, callers = models_of(repository, bundle, layout, scheduling, plan, version)
        retired = _retired(repository, bundle, layout)
        _check_versions(repository, [*callees, *callers], bundle)
        published = Published(
            repository, layout, bundle.bundle_sha256, {model.name: model.version for model in (*callees, *callers)}
        )
        try:
            signed = _sign_again(bundle, repository / "ovr" / str(version))
        except OSError as error:
            raise _also(error, "nothing else was changed", repository) from None
        if not retired and _is_served(repository, server, [*callees, *callers]):
            if exist_ok or signed:
                return published
            raise ArtifactError(f"{repository} serves this bundle ({bundle.bundle_sha256[:12]}) already, as version {version}")
        answers = None if server is None else RecordedAnswers(bundle, server, max_batch_size=max_batch_size)
        transition = Transition(repository, server)
        try:
            if server is not None:
                retire_uncalled(Transition(repository, server), server, keep=MAX_OLD)
                transition = Transition(repository, server)
            _switch(transition, callees, callers, answers)
        except BaseException as error:
            _take_back(transition, error)
            raise
        if wait or server is None or retired or not all(map(transition.is_open, callees)):
            try:
                _retire_old(transition, callees, callers, retired)
            except (OSError, OvrError) as error:
                raise _also(error, f"version {version} is served; publish it again to finish", repository) from None
    log.info("published bundle %s as version %d in %s (%s)", bundle.bundle_sha256[:12], version, repository, layout)
    return published


def settle(repository: Path, server: str) -> None:
    """Return once the server has unloaded the versions that publications left loaded with `wait=False`.

    Raises:
        ArtifactError: another process is publishing, or there is no repository, or it cannot be written.
        ServingError: the server is not there or serves something else than the repository, or a request to an old version is not
            done after a minute.
    """
    repository = repository.absolute()
    if read_config(repository, "ovr") is None:
        raise ArtifactError(f"{repository} serves no bundle; publish one there with `ovr publish`")
    with locked(repository):
        _check_serves(server, repository)
        check_is_loaded(repository, server)
        transition = Transition(repository, server)
        try:
            retire_uncalled(transition, server, keep=0)
            for name in model_names(repository):
                control.wait_until_alone(server, name, *served_versions(repository, name))
        except OSError as error:
            raise _also(error, "old versions stay loaded", repository) from None


def _switch(transition: Transition, callees: list[Model], callers: list[Model], answers: RecordedAnswers | None) -> None:
    """Go over to these models: the callees serve old and new versions until the callers serve the new and answer as they should."""
    for model in (*callees, *callers):
        transition.write(model)
    changed = [model for model in callees if transition.overlap(model)]
    if answers is not None:
        _check_callees(answers, callees, changed)
    for model in callers:
        transition.configure(model.config)
    if answers is not None:
        for model in callers:
            (answers.check_router if model.name == "ovr" else answers.check_ensemble)(model.version)


def _retire_old(transition: Transition, callees: list[Model], callers: list[Model], retired: list[str]) -> None:
    transition.settle(callers)  # what the old ones still work on needs the old callees
    for model in callees:
        transition.configure(model.config)
    for name in retired:
        transition.retire(name)
    transition.settle(callees)


def _check_callees(answers: RecordedAnswers, callees: list[Model], changed: list[Model]) -> None:
    version_of = {model.name: model.version for model in callees}
    if "ovr_scores" in {model.name for model in changed}:
        answers.check_scores(version_of["ovr_scores"])
    names = {model.name for model in changed}
    if class_ids := [i for i in answers.bundle.taxonomy.ids if names & {"backbone", head_model_name(i)}]:
        answers.check_heads(version_of["backbone"], class_ids)


def _take_back(transition: Transition, error: BaseException) -> None:
    """Undo the transition, and raise what is wrong as an error that says what is served."""
    problems = transition.undo()
    if not isinstance(error, OSError | OvrError):
        return
    served = read_config(transition.repository, "ovr")
    what = "nothing is published" if served is None else f"version {served.parameters[VERSION].string_value} is served as before"
    if problems:
        what = f"what could not be taken back: {'; '.join(problems)}"
    raise _also(error, what, transition.repository) from None


def _also(error: OSError | OvrError, what: str, repository: Path) -> OvrError:
    if isinstance(error, OSError):
        return ArtifactError(f"{error.filename or repository} cannot be written: {error.strerror or error}; {what}")
    return type(error)(f"{error}; {what}")


def _check_serves(server: str, repository: Path) -> None:
    """Raise ServingError where the server's router is none of the repository's: what is published would not be loaded."""
    parameters = control.model_parameters(server, "ovr")
    if parameters is None:
        return
    try:
        version, bundle_sha256 = int(parameters[VERSION]), str(json.loads(parameters[CARD])["bundle_sha256"])
    except (KeyError, ValueError, TypeError):
        raise ServingError(f"the server at {server} has a model 'ovr' that was not published by ovr") from None
    card = repository / "ovr" / str(version) / "card.json"
    if not card.is_file() or read_json(card)["bundle_sha256"] != bundle_sha256:
        raise ServingError(
            f"the server at {server} serves another repository than {repository}: its model 'ovr' is version {version} of bundle "
            f"{bundle_sha256[:12]}, which is not there"
        )


def _check_same_use(repository: Path, bundle: ModelBundle, layout: Layout) -> None:
    """Raise ArtifactError where clients of what the repository serves could not go on."""
    served = read_config(repository, "ovr")
    if served is None:
        return
    name, shape = served.input[0].name, tuple(served.input[0].dims)
    wanted_name, wanted_shape = router_input(bundle.input)
    if (name, shape) != (wanted_name, wanted_shape):
        raise ArtifactError(
            f"{repository} serves rows of shape {shape} as input {name!r}, this bundle takes {wanted_shape} as "
            f"{wanted_name!r}; publish it into a repository of its own"
        )
    if any(tensor.name == COHORT for tensor in served.input) != (bundle.cohorts is not None):
        # The scores take a cohort from all that call them, or from none: old and new versions could not be served side by side.
        what, has = ("no cohorts", "some") if bundle.cohorts is not None else ("cohorts", "none")
        raise ArtifactError(f"{repository} serves {what} and this bundle has {has}; publish it into a repository of its own")
    if layout == "fused" and read_config(repository, "ovr_heads") is not None:
        raise ArtifactError(f"{repository} has layout per_head and its heads would stay behind; publish with layout per_head")


def _version_to_serve(repository: Path, bundle: ModelBundle) -> int:
    """Return the version that the repository holds this bundle as, with this ovr's router, or else the next free one."""
    for version in reversed(versions_of(repository / "ovr")):
        directory = repository / "ovr" / str(version)
        if read_json(directory / "card.json")["bundle_sha256"] != bundle.bundle_sha256:
            continue
        scores = repository / "ovr_scores" / str(version) / "model.onnx"
        if scores.is_file() and not is_same(scores, served_graph(bundle)):  # the bundle's digest leaves the graph out
            continue
        # An earlier ovr's router does not know what the configurations of this one say.
        if all(is_same(directory / name, content) for name, content in router_files(bundle.card).items()):
            return version
    return 1 + max(v for name in ("ovr_scores", "ovr", "ovr_heads") for v in (0, *versions_of(repository / name)))


def _sign_again(bundle: ModelBundle, router: Path) -> bool:
    """Give the router's version, if it is there already, the signatures that its bundle has by now; return whether any is new."""
    if not router.is_dir():
        return False
    original = router / SIGNATURES / "fused.onnx"
    if bundle.cohorts is not None and not original.is_file() and (bundle.path / SIGNATURES).is_dir():
        original.parent.mkdir(exist_ok=True)
        write_file(original, bundle.fused_onnx.read_bytes())  # what was signed; the scores have it changed
    changed = take_over(bundle.path, router)
    if changed:
        log.info("%s has newer signatures of its bundle: %s", router, ", ".join(changed))
    return bool(changed)


def _retired(repository: Path, bundle: ModelBundle, layout: Layout) -> list[str]:
    """Return the models in the repository of heads that this bundle does not have."""
    if layout == "fused":
        return []
    kept = {head_model_name(class_id) for class_id in bundle.taxonomy.ids}
    return sorted(path.parent.name for path in repository.glob("head_*/config.pbtxt") if path.parent.name not in kept)


def _is_served(repository: Path, server: str | None, models: list[Model]) -> bool:
    """Return whether each of the models is there and serves its version alone with these settings, in the server too."""
    ready = None if server is None else control.ready_versions(server)
    for model in models:
        config = read_config(repository, model.name)
        if config != model.config:
            return False
        if not (repository / model.name / str(model.version)).is_dir():
            return False
        if ready is not None and ready.get(model.name) != model.versions:
            return False
    return True


def _check_versions(repository: Path, models: list[Model], bundle: ModelBundle) -> None:
    """Raise ArtifactError where a version directory that this publication needs is there with another content: of a bundle that was
    made of the same ancestor, and not of this one.
    """
    clashes = []
    for model in models:
        directory = repository / model.name / str(model.version)
        onnx_file = model.parts.get("model.onnx")
        if isinstance(onnx_file, Path) and directory.exists() and not is_same(directory / "model.onnx", onnx_file):
            clashes.append(model)
    if not clashes:
        return
    shown = ", ".join(f"{model.name} version {model.version}" for model in clashes[:5])
    more = f" and {len(clashes) - 5} more" if len(clashes) > 5 else ""
    what = f"{repository} has {shown}{more} with other weights; a version is never overwritten"
    names = {model.name for model in clashes}
    ids = [repr(class_id) for class_id in bundle.taxonomy.ids if head_model_name(class_id) in names]
    classes = f"classes=[{','.join(ids[:5])}{',...' if more else ''}]"
    served = read_config(repository, "ovr")
    if served is not None and json.loads(served.parameters[CARD].string_value)["backbone_sha256"] == bundle.backbone_sha256:
        raise ArtifactError(
            f"{what}. Two bundles gave their heads the same version, apart from each other: `ovr head replace bundle=SERVED "
            f'from={bundle.path} "{classes}" out=NEW` makes these heads the next versions of the bundle that is served, or '
            "publish this one into a repository of its own. The gate judges heads with other weights on "
            "rows that neither has seen, and says how many it takes"
        )
    raise ArtifactError(
        f"{what}: give the new heads a higher version (`ovr train version=...`), or publish into a repository of its own"
    )
