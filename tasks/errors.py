"""Every error that vinoflow raises on purpose.

    VinoflowError
    ├── RecipeError (ValueError)                  a recipe, a reference or an option is wrong
    ├── PreflightError (ValueError)               this recipe cannot work for this checkpoint or machine
    ├── SourceError (RuntimeError)                the checkpoint cannot be fetched or read
    │   ├── SourceNotFoundError (LookupError)     no such repository, revision, package or folder
    │   ├── SourceAccessError (PermissionError)   gated or private, and the token does not open it
    │   └── SourceUnreachableError (ConnectionError)  no network, or the other side does not answer
    ├── IntegrityError (ValueError)               a file is not the one that its manifest names
    ├── DiskFullError (OSError)                   the disk has no room
    ├── UnwritableError (PermissionError)         a folder cannot be written
    ├── WorkerError (RuntimeError)                a child process crashed, was killed or hung
    │   └── ExportError                           ... while it exported
    ├── DeviceError (RuntimeError)                the device is missing or refuses the model
    ├── EngineError (RuntimeError)                the engine did not answer a request
    │   ├── RefusedError (ValueError)             ... because it cannot: the prompt is empty or too long, say
    │   └── EngineDiedError                       ... because its process ended
    ├── BatchError (ValueError)                   input, output or cluster of a batch are not what they should be
    ├── StorageError (ConnectionError)            the object store of a batch does not answer, or fails
    ├── ServingError (RuntimeError)               the server cannot listen where it should
    ├── RegistryError (RuntimeError)              the registry does not answer, or refuses
    │   ├── VersionNotFoundError (LookupError)    no such model, version or alias
    │   └── ConflictError                         the alias moved while the decision to move it was made
    ├── PromotionError (ValueError)               the version may not have this alias (exit code 3)
    └── GateError (ValueError)                    the model was validated and a gate failed (exit code 3)

Each message says what went wrong, with which value, against which limit or file, and what to do next.
"""

from __future__ import annotations


class VinoflowError(Exception):
    """The base of all; `exit_code` is what the command line ends with."""

    exit_code = 1


class RecipeError(VinoflowError, ValueError):
    """A recipe, a model reference or an option is wrong."""


class PreflightError(VinoflowError, ValueError):
    """The recipe cannot work for this checkpoint or on this machine."""


class SourceError(VinoflowError, RuntimeError):
    """The checkpoint cannot be fetched or read."""


class SourceNotFoundError(SourceError, LookupError):
    """There is no such repository, revision, package, file or folder."""


class SourceAccessError(SourceError, PermissionError):
    """The source is gated or private and the token at hand does not open it."""


class SourceUnreachableError(SourceError, ConnectionError):
    """The source could not be reached, or stopped answering."""


class IntegrityError(VinoflowError, ValueError):
    """A file is missing, was added, or is not the one that its manifest names."""


class DiskFullError(VinoflowError, OSError):
    """The disk has no room for what was to be written."""


class UnwritableError(VinoflowError, PermissionError):
    """A folder cannot be written: it is read-only, or another user's."""


class WorkerError(VinoflowError, RuntimeError):
    """A child process crashed, was killed or did not end in time."""


class ExportError(WorkerError):
    """The export failed, or left something out that serving needs."""


class DeviceError(VinoflowError, RuntimeError):
    """The device does not exist here, or refuses the model."""


class EngineError(VinoflowError, RuntimeError):
    """The engine did not answer a request."""


class RefusedError(EngineError, ValueError):
    """The engine cannot answer this request: its prompt is empty or too long, its schema is not supported."""


class EngineDiedError(EngineError):
    """The engine's process ended before the request was answered."""


class BatchError(VinoflowError, ValueError):
    """The input, the output or the cluster of a batch is not what it should be."""


class StorageError(VinoflowError, ConnectionError):
    """The object store of a batch's input or output does not answer, or fails."""


class ServingError(VinoflowError, RuntimeError):
    """The server cannot listen where it should."""


class RegistryError(VinoflowError, RuntimeError):
    """The registry does not answer, or refuses."""


class VersionNotFoundError(RegistryError, LookupError):
    """There is no such model, version or alias."""


class ConflictError(RegistryError):
    """The alias is not where it was when the decision to move it was made."""


class PromotionError(VinoflowError, ValueError):
    """The version may not have this alias."""

    exit_code = 3


class GateError(VinoflowError, ValueError):
    """The model was validated, and at least one gate failed."""

    exit_code = 3
