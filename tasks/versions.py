"""Which versions of the libraries made or ran a model."""

from __future__ import annotations

from importlib.metadata import version

EXPORT = ("openvino", "openvino-tokenizers", "nncf", "optimum-intel", "transformers", "torch")
RUN = ("openvino", "openvino-genai", "openvino-tokenizers")


def versions(packages: tuple[str, ...]) -> dict[str, str]:
    """Return the installed version of each package."""
    return {package: version(package) for package in packages}
