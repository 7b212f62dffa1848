"""``tapwb claims``: every figure the seed texts claim, beside what was measured here."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from tapwb.core.errors import UnknownName
from tapwb.views.cli import options
from tapwb.views.cli.output import command_output, table, text

if TYPE_CHECKING:
    from tapwb.evals.seed_ledger import SeedClaim

EXAMPLE = "tapwb claims --feature S1.32"


def command(
    feature: Annotated[str | None, typer.Option("--feature", help="Only the figures of one feature: S1.32.")] = None,
    as_json: options.Json = False,
) -> None:
    """Print the seeds' figures beside ours.

    Claimed, measured here, and why they differ. Claims are under test; they are never expected values.
    """
    with command_output(as_json=as_json) as out:
        from tapwb.core.provenance import Provenance
        from tapwb.evals.seed_ledger import load_ledger

        ledger = load_ledger()
        if feature is not None and feature not in {known.id for known in ledger.features}:
            raise UnknownName(f"no seed feature {feature!r}. Ids run from S0.1 to S4.24; see data/seeds/features.yml.")
        claims = [claim for claim in ledger.claims() if feature in (None, claim.feature_id)]
        rows = [
            (claim.id, claim.quantity, claim.claimed, claim.measured or "–", claim.verdict or "–", claim.why or "–")
            for claim in claims
        ]
        measured = sum(claim.measured is not None for claim in claims)
        payload = {
            "claims": [_plain(claim) for claim in claims],
            "n_claims": len(claims),
            "n_measured": measured,
            "provenance": Provenance.collect(),
        }
        out.result(
            payload,
            table("Claimed beside measured", ("id", "figure of", "claimed", "measured", "verdict", "why"), rows),
            text(f"{measured} of {len(claims)} figures have been measured here."),
        )


def _plain(claim: "SeedClaim") -> dict[str, Any]:
    known = claim.to_json()
    missing = {"unavailable": claim.why or "not measured here yet"}
    return {**known, "measured": claim.measured if claim.measured is not None else missing}
