"""The version, readable where the package runs from a checkout without being installed."""

__version__ = "0.1.0"
