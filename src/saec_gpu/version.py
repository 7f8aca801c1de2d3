"""The version of the package, as its metadata tells it."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("saec-gpu")
except PackageNotFoundError:  # used from a checkout that was never installed
    __version__ = "0+unknown"
