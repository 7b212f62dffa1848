"""Runs on disk: one folder per run, readable without this program, safe to write from several processes.

``run_record`` is the record, ``folder`` the shelf, ``lock`` and ``redact`` what makes it safe to share.
"""

from tapwb.store.folder import RunListing, RunProblem, RunStore
from tapwb.store.run_record import SCHEMA_VERSION, RunRecord

__all__ = ["RunRecord", "RunStore", "RunListing", "RunProblem", "SCHEMA_VERSION"]
