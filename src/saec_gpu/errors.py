"""The errors of the package: one base, and a built-in that callers would catch anyway."""

from __future__ import annotations


class SaecError(Exception):
    """Base of every error that this package raises on purpose."""


class LayoutError(SaecError, ValueError):
    """Fields, rows or dims do not fit each other."""


class SourceError(SaecError, ValueError):
    """A table or weight source cannot be read as asked."""


class ParamError(SaecError, ValueError):
    """A parameter is outside what it may be."""


class WeightError(SaecError, ValueError):
    """A weight is negative or not finite, or weights do not fit their field."""


class NonFiniteRowError(SaecError, ValueError):
    """A row holds NaN or infinity."""


class ArtifactError(SaecError, ValueError):
    """An artifact is incomplete, altered, or cannot be written."""


class CheckpointError(SaecError, ValueError):
    """A checkpoint does not belong to the run that wants to resume it."""


class BackendUnavailableError(SaecError, RuntimeError):
    """The backend that was asked for cannot run here."""


class DeviceError(SaecError, RuntimeError):
    """A device refused or failed at what it was asked to do."""


class DeviceMemoryError(SaecError, MemoryError):
    """A device has not as much memory left as was asked for."""


class MissingExtraError(SaecError, ImportError):
    """A package of an optional extra is needed and not installed."""

    @classmethod
    def for_extra(cls, package: str, extra: str, what: str) -> MissingExtraError:
        """Return the error that names the missing package and the command that installs it."""
        return cls(
            f"{what} needs the package {package}, which is not installed; "
            f"run: pip install 'saec_gpu[{extra}]'"
        )
