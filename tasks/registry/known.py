"""What came of inputs before, on whatever machine: so that one that does not have the files need not fetch them."""

from __future__ import annotations

from tasks.records import Origin
from tasks.registry.store import connect, translated


def checkpoint_digest(name: str, origin: Origin) -> str | None:
    """Return the digest that a checkpoint had when a version of a model was made of it; None: none was.

    Args:
        name: Of the registered model.
        origin: With a revision that always names the same files: a commit, never a branch.
    """
    wanted = f"name = '{name}' AND tags.`vinoflow.source_revision` = '{origin.revision}'"
    with translated():
        found = connect().search_model_versions(filter_string=wanted, order_by=["version_number DESC"], max_results=100)
    source = f"{origin.kind}:{origin.location}"
    return next(
        (
            version.tags["vinoflow.checkpoint_digest"]
            for version in found
            if version.tags.get("vinoflow.source") == source and "vinoflow.checkpoint_digest" in version.tags
        ),
        None,
    )


def failed_run(experiment: str, inputs: str) -> str | None:
    """Return the newest run of an experiment in which these inputs failed their gates; None: there is none."""
    wanted = f"tags.`vinoflow.inputs` = '{inputs}' AND tags.`vinoflow.passed` = 'false'"
    client = connect()
    with translated():
        known = client.get_experiment_by_name(experiment)
        runs = client.search_runs([known.experiment_id], wanted, max_results=1) if known else []
    return str(runs[0].info.run_id) if runs else None
