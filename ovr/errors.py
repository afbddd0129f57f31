"""The errors that a caller of ovr can handle. Knows nothing of the rest of the package.

Every message says what is wrong, what was got and what would be right. `assert` is for our own bugs only.
"""


class OvrError(Exception):
    """Base of all errors that ovr raises on purpose; the command line prints it without a traceback."""


class ConfigError(OvrError):
    """A configuration value, key or group option that cannot be used."""


class DataError(OvrError):
    """Training data that cannot be used: missing file, NaN, unknown label, wrong shape."""


class TaxonomyError(OvrError):
    """A class id that cannot be used, is there twice, or is not there."""


class ArtifactError(OvrError):
    """A bundle, head, checkpoint or repository that is damaged, of another version, or does not fit."""


class TrainingError(OvrError):
    """Training that cannot go on: NaN or infinity in a step."""


class InputError(OvrError):
    """Rows given for prediction that do not match the model's input schema."""


class ServingError(OvrError):
    """A server that cannot be started, reached or loaded."""


class UnavailableError(ServingError):
    """A server that cannot be reached, or takes no more requests at the moment: the same call may succeed later."""


class DeadlineError(ServingError):
    """A request or a call that took longer than it was given."""


class ContractError(OvrError):
    """Heads that do not keep the calibration contract, or a server that does not give what was exported."""


class GateError(OvrError):
    """A head that may not enter a bundle: it does not pass the gate's checks."""
