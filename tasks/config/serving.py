"""How a version is served."""

from __future__ import annotations

import ipaddress
import os
import re
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from tasks.config.base import Config
from tasks.config.validation import one_device

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Serving(Config):
    """How a version is served."""

    host: str = Field("127.0.0.1", description="The address to listen on; beyond this machine only with API keys.")
    port: int = Field(8000, ge=0, le=65535, description="0: any free one.")
    allowed_hosts: tuple[str, ...] = Field(
        (), description="Host names that requests may be for; none: this machine's own where it listens there only."
    )
    ssl_certfile: str | None = Field(None, description="PEM file of the certificate chain; with ssl_keyfile: HTTPS.")
    ssl_keyfile: str | None = Field(None, description="PEM file of the private key.")
    api_keys: dict[str, Sha256] = Field(
        {},
        description="SHA-256 of each key by its owner's name (`vinoflow api-key` makes them); none: no key is asked.",
    )
    device: str | None = Field(None, description="Where to run; none: where the version was validated.")
    kv_cache_gb: int = Field(
        0, ge=0, description="Gigabytes for keys and values; 0: as much as the requests under way need."
    )
    swap: Literal["beside", "stop-first"] = Field(
        "beside",
        description="beside: load a new version beside the old one; stop-first: where memory does not hold two, let "
        "requests wait while the old one makes room.",
    )
    poll_s: float = Field(2.0, gt=0, description="Seconds between looks at the alias.")
    retry_s: float = Field(
        5.0, gt=0, description="Seconds until a failed swap is tried again; doubles up to retry_most_s."
    )
    retry_most_s: float = Field(300.0, gt=0, description="Seconds between two tries of a swap at most.")
    max_running: int = Field(32, ge=1, description="Answers that are generated at once.")
    max_waiting: int = Field(128, ge=0, description="Answers that wait for their turn; beyond: 429 with Retry-After.")
    max_request_tokens: int | None = Field(
        None, ge=2, description="Tokens of prompt and answer that a request may have; none: the model's context."
    )
    deadline_s: float = Field(600.0, gt=0, description="Seconds that a request may take, waiting included.")
    drain_s: float = Field(30.0, ge=0, description="Seconds that requests may go on after SIGTERM.")
    max_body_bytes: int = Field(4_000_000, ge=1000, description="Bytes of a request at most.")
    body_timeout_s: float = Field(
        30.0, gt=0, description="Seconds that a request's headers may take to arrive, and its body."
    )
    log_prompts: bool = Field(False, description="Whether the request log has prompts and answers.")
    trace_share: float = Field(0.0, ge=0, le=1, description="Which share of requests becomes a trace in MLflow.")

    @field_validator("device")
    @classmethod
    def _names_one_device(cls, value: str | None) -> str | None:
        return value and one_device(value)

    @model_validator(mode="after")
    def _keys_before_strangers(self) -> Self:
        if not self.loopback and not self.api_keys:
            raise ValueError(
                f"host {self.host} is open to other machines and api_keys is empty: make a key with "
                "`vinoflow api-key`, or listen on 127.0.0.1"
            )
        if bool(self.ssl_certfile) != bool(self.ssl_keyfile):
            raise ValueError("ssl_certfile and ssl_keyfile belong together: set both, or none")
        return self

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def hosts(self) -> tuple[str, ...]:
        """Host names that requests may be for; empty: any. A stranger's page must not reach a server without keys."""
        own = ("127.0.0.1", "localhost", "::1", self.host)
        return self.allowed_hosts or (own if self.loopback else ())


def keys_from_environment() -> dict[str, str]:
    """Return the keys that VINOFLOW_API_KEYS names: `owner:sha256,owner:sha256`.

    Raises:
        ValueError: It has another shape.
    """
    text = os.environ.get("VINOFLOW_API_KEYS", "")
    keys = {}
    for part in filter(None, re.split(r"[,\s]+", text)):
        owner, colon, digest = part.partition(":")
        if not (owner and colon and re.fullmatch(r"[0-9a-f]{64}", digest)):
            raise ValueError(
                "VINOFLOW_API_KEYS must be owner:sha256, several with commas between; `vinoflow api-key` makes them"
            )
        keys[owner] = digest
    return keys
