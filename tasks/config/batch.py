"""How a file of prompts is answered."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from tasks.config.base import Config
from tasks.config.validation import one_device

Kind = Literal["jsonl", "csv", "parquet", "openai"]

_HOW = {
    *("window", "kv_cache_gb", "part_rows", "runner", "address", "workers", "engines", "threads", "strict", "device"),
}


class Columns(Config):
    """Which columns of the input mean what. Those that a row does not have count as not given."""

    id: str = Field("id", description="The row's id; without one: its position and a hash of its content.")
    prompt: str = Field("prompt", description="What to ask: a user's message, or with `raw` the text itself.")
    messages: str = Field("messages", description="A whole chat in place of a prompt: a list of {role, content}.")
    system: str = Field("system", description="A system message to go before the prompt.")
    settings: str = Field("settings", description="An object of generation settings, which come before the batch's.")
    overrides: tuple[str, ...] = Field(
        (), description="Columns that are named as a generation setting (max_tokens, temperature, ...) and hold it."
    )


class Batch(Config):
    """How a file of prompts is answered."""

    format: Kind | None = Field(
        None,
        description="Of the input; none: by its name (.jsonl, .csv, .tsv, .parquet), and `openai` where its first row "
        "has custom_id, url and body, as OpenAI's batch files do.",
    )
    columns: Columns = Columns()
    delimiter: str | None = Field(None, min_length=1, max_length=1, description="Of CSV; none: a comma, in .tsv a tab.")
    raw: bool = Field(False, description="Whether prompts go to the model as they are, without the chat template.")
    system: str = Field("", description="A system message before each prompt that has none of its own.")
    settings: dict[str, Any] = Field(
        {},
        description="Generation settings of all rows, by the names of the server's API: max_tokens (512 if not given), "
        "temperature (0), top_p, top_k, min_p, seed, stop, penalties, response_format.",
    )
    seed: int = Field(0, ge=0, description="From it and its position each row gets its own seed, if it is sampled.")
    strict: bool = Field(False, description="Whether one bad row ends the batch before anything is answered.")
    output_prefix: str = Field("", description="Before the names of the columns that are added.")
    device: str | None = Field(None, description="Where to run; none: where the version was validated.")
    exact: bool = Field(
        False,
        description="Compute in float32, so that answers do not depend on what else is in the batch. Slower, and not "
        "what was validated: for tests and diagnosis.",
    )
    window: int = Field(128, ge=1, description="Rows that an engine answers at once.")
    kv_cache_gb: int = Field(
        0, ge=0, description="Gigabytes for keys and values; 0: as much as the rows under way need."
    )
    part_rows: int = Field(256, ge=1, description="Rows that are kept together: what a kill may cost a second time.")
    max_row_bytes: int = Field(1_000_000, ge=1000, description="Bytes of a row at most; longer ones are rejected.")
    runner: Literal["local", "dask", "ray"] = Field(
        "local",
        description="local: on this machine; dask, ray: on the workers of a cluster, by Prefect's task runners.",
    )
    address: str | None = Field(None, description="Of a running Dask or Ray cluster; none: one is started here.")
    workers: int = Field(2, ge=1, description="Workers of a cluster that is started here, or as many as it has.")
    engines: int | None = Field(
        None,
        ge=1,
        description="Engines of each worker, or of this machine; none: on a CPU one a core, as far as rows and half of "
        "the free memory suffice, on other devices one.",
    )
    threads: int | None = Field(
        None, ge=1, description="Threads of a worker's engines together; none: its share of the cores of its machine."
    )

    @field_validator("device")
    @classmethod
    def _names_one_device(cls, value: str | None) -> str | None:
        return value and one_device(value)

    @model_validator(mode="after")
    def _address_is_a_clusters(self) -> Batch:
        if self.address and self.runner == "local":
            raise ValueError(f"address {self.address} is a cluster's: set runner to dask or ray, or leave it out")
        return self

    @property
    def decides(self) -> dict[str, Any]:
        """What of it decides the answers and the output; the rest says how fast, where and how carefully."""
        return self.model_dump(mode="json", exclude=_HOW)
