"""Does a version that was just loaded answer as it did when it was validated?"""

from __future__ import annotations

from tasks.config import Recipe
from tasks.engine import AsyncEngine, Ended
from tasks.errors import EngineError
from tasks.records import Answer, ValidationReport
from tasks.validate import failures, reference_requests

# Rounding changes with the batch, so answers part somewhere; their first tokens hardly do.
LEAST_SAME_FIRST = 0.5


async def smoke_test(engine: AsyncEngine, recipe: Recipe, report: ValidationReport) -> str:
    """Answer the reference prompts, all at once; return what is wrong with the answers, empty if nothing.

    As many must meet their expectations as the recipe's gate on `prompts_passed_share` asks for, and half of them must
    begin with the token that they began with when the version was validated.
    """
    group = engine.submit(reference_requests(recipe.validation), streams=False)
    answers: dict[int, Answer] = {}
    try:
        async for event in group:
            if isinstance(event, Ended):
                answers[event.place] = event.answer
    except EngineError as error:
        return f"a reference prompt was not answered: {error}"
    return judge([answers[place] for place in range(len(answers))], recipe, report)


def judge(answers: list[Answer], recipe: Recipe, report: ValidationReport) -> str:
    """Return what is wrong with the answers to the reference prompts, empty if nothing."""
    prompts = recipe.validation.prompts
    first = {result.id: result.answer.token_ids[:1] for result in report.prompts}
    same = sum(
        tuple(answer.token_ids[:1]) == first.get(prompt.id) for prompt, answer in zip(prompts, answers, strict=True)
    )
    if same < LEAST_SAME_FIRST * len(prompts):
        return f"{same} of {len(prompts)} answers begin as they did when it was validated"
    failed = [
        f"{prompt.id} {problems[0]}"
        for prompt, answer in zip(prompts, answers, strict=True)
        if (problems := failures(answer, prompt.expect))
    ]
    gate = recipe.validation.all_gates.get("prompts_passed_share")
    least = (gate.min or 0.0) if gate else 0.0
    passed = len(prompts) - len(failed)
    if passed < least * len(prompts):
        return f"{passed} of {len(prompts)} reference prompts pass, {least:g} of them must: {'; '.join(failed[:3])}"
    return ""
