"""A partner on this machine: a version that was pulled and loaded here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tasks import serve
from tasks.chat.conversation import OnText, Reply, Served, Settings
from tasks.config import Message
from tasks.engine import Engine, Request

_NEW_TOKENS = 512


class Loaded:
    """A version that was pulled and loaded on this machine."""

    def __init__(self, engine: Engine, served: Served) -> None:
        """Take the loaded engine, and what it runs."""
        self._engine = engine
        self._served = served

    def served(self) -> Served:
        """Return the version."""
        return self._served

    def answer(self, messages: Sequence[Message], settings: Settings, on_text: OnText) -> Reply:
        """Answer the last of the messages."""
        sampling = {"do_sample": True, "temperature": settings.temperature, "rng_seed": settings.seed}
        request = Request(
            messages=tuple(messages),
            max_new_tokens=settings.max_new_tokens or _NEW_TOKENS,
            generation=sampling if settings.temperature else {},
        )
        answer = self._engine.answer(request, on_text=on_text).answer
        return Reply(
            text=answer.text,
            served=self._served,
            prompt_tokens=answer.prompt_tokens,
            tokens=len(answer.token_ids),
            finish_reason=answer.finish_reason,
            ttft_ms=answer.ttft_ms,
            tokens_per_second=1000 / answer.tpot_ms if answer.tpot_ms else None,
        )


@contextmanager
def loaded(reference: str, *, device: str | None = None) -> Iterator[Loaded]:
    """Pull a version, load it, and end its process afterwards.

    Args:
        reference: NAME/VERSION, NAME@ALIAS or NAME@latest.
        device: Where to run; none: where the version was validated.

    Raises:
        VersionNotFoundError: There is no such version.
        IntegrityError: One of its files is not what was registered.
        DeviceError: The device is missing or refuses the model.
    """
    with serve.loaded(reference, device=device) as (engine, version, used):
        served = Served(reference=version.reference, digest=version.digest, device=used, context=engine.context)
        yield Loaded(engine, served)
