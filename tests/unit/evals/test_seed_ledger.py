"""The seed ledger is complete, honest about evidence, and refuses entries that are not.

The ids, names and figure counts are pinned here: an entry that disappears is a promise forgotten.
"""

import hashlib
from collections import Counter
from pathlib import Path

import pytest

from tapwb.core.errors import TapError, UnknownName
from tapwb.evals.seed_evidence import mentioned_features, missing_evidence, module_exists
from tapwb.evals.seed_ledger import SeedClaim, SeedLedger, load_faults, load_ledger

ROOT = Path(__file__).resolve().parents[3]
FEATURES_PER_SEED = {0: 22, 1: 38, 2: 19, 3: 16, 4: 24}
FAULTS_PER_SEED = {0: 23, 1: 16, 2: 21, 3: 19, 4: 22}
# Over the lines `id|name|part` in order. An entry is renamed only together with this line.
NAMES_SHA256 = "f20d06e00e9274ba4b0e2759e857db23d4e7c02acb51a5a5649361520be59628"
# Rows times columns of each table of the seeds, plus the claims made in the text around it.
FIGURES_PER_FEATURE = {
    "S0.1": 2,
    "S0.2": 2,
    "S0.3": 1,
    "S0.4": 5 * 3 + 1,  # seconds and speedup of five tasks, and the headline
    "S0.5": 4,
    "S0.6": 4,
    "S0.7": 4 * 2 + 1,  # input and output price of four models, and the headline
    "S0.8": 4 * 2 + 4,  # cost and saving of four models, and the four sums of the text
    "S0.14": 1,
    "S0.18": 4,
    "S0.19": 3,
    "S0.21": 3,
    "S1.1": 2,
    "S1.31": 1,
    "S1.32": 15 * 2 + 3,  # fifteen cards normal and TAP, and three memory needs
    "S1.33": 6 * 3 + 1,
    "S1.34": 7 * 3 + 1,
    "S1.35": 8 * 4 + 1,
    "S1.37": 2,
    "S2.1": 1,
    "S2.9": 4 * 3 + 2,
    "S3.11": 4 * 4 + 4,
    "S4.1": 3 * 2,
    "S4.2": 4 * 5,
    "S4.16": 2,
    "S4.18": 3,
    "S4.20": 3,
    "S4.22": 4 * 2 + 2,  # two of the four rows state no saving
    "S4.23": 2 * 3,
    "S4.24": 1,
}

VALID = """
schema_version: 1
features:
  - {id: S9.1, name: a, seed: 9, part: quant, status: planned, module: null, test: null, figures: [
      {id: C9.1-x, quantity: q, claimed: "1 s"}]}
"""


@pytest.fixture(scope="module")
def ledger() -> SeedLedger:
    """The project's own ledger, read once."""
    return load_ledger()


def ledger_text(tmp_path: Path, text: str) -> Path:
    """A ledger file with this content."""
    file = tmp_path / "features.yml"
    file.write_text(text, encoding="utf-8")
    return file


def test_the_ledger_lists_every_feature_of_every_seed_in_order(ledger):
    """All 119 ids are there, none twice, numbered without a gap."""
    ids = [feature.id for feature in ledger.features]
    assert ids == [f"S{seed}.{n}" for seed, count in FEATURES_PER_SEED.items() for n in range(1, count + 1)]


def test_feature_names_and_parts_are_the_agreed_ones(ledger):
    """No feature is renamed or moved to another part in passing."""
    lines = [f"{feature.id}|{feature.name}|{feature.part}" for feature in ledger.features]
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == NAMES_SHA256


def test_every_table_of_the_seeds_is_complete_row_by_row(ledger):
    """Each feature carries exactly as many figures as the seed states for it."""
    carried = {feature.id: len(feature.claims) for feature in ledger.features if feature.claims}
    assert carried == FIGURES_PER_FEATURE


def test_the_fault_list_is_complete():
    """All 101 faults are there in order, each in one sentence."""
    faults = load_faults()
    expected = [f"F{seed}.{n}" for seed, count in FAULTS_PER_SEED.items() for n in range(1, count + 1)]
    assert [fault.id for fault in faults] == expected
    assert not [fault.id for fault in faults if not fault.fault.endswith(".")]


def test_every_working_feature_has_its_module_and_its_test(ledger):
    """`works` is a statement about files that exist and tests that name the feature."""
    gaps = {feature.id: missing_evidence(feature, ROOT) for feature in ledger.features}
    assert {name: gap for name, gap in gaps.items() if gap} == {}


def test_every_guard_against_a_fault_exists():
    """A fault that says it is guarded names a file that is there."""
    missing = [fault for fault in load_faults() if fault.guarded_by and not (ROOT / fault.guarded_by).is_file()]
    assert missing == []


def test_tests_and_notebooks_name_only_features_that_exist(ledger):
    """A mistyped id on a `Seed features:` line is found."""
    known = {feature.id for feature in ledger.features}
    files = [*(ROOT / "tests").rglob("test_*.py"), *(ROOT / "notebooks").glob("*.py")]
    strangers = {file.relative_to(ROOT).as_posix(): mentioned_features(file) - known for file in files}
    assert {name: ids for name, ids in strangers.items() if ids} == {}


def test_every_measured_value_says_which_kind_of_source_it_has(ledger):
    """A measured value is measured, computed or estimated, and says by what."""
    kinds = Counter(claim.source.split(":")[0] for claim in ledger.claims() if claim.source)
    assert set(kinds) <= {"measured", "computed", "estimated"}


def test_a_claim_knows_its_feature(ledger):
    """The feature id is read off the claim id, and looking it up gives the claim back."""
    claim = next(claim for claim in ledger.claims() if claim.id == "C1.32-rtx3060-normal")
    assert claim.claimed == "7B"
    assert claim in ledger[claim.feature_id].claims
    assert claim.to_json()["id"] == claim.id


def test_an_unknown_feature_is_refused_with_the_range(ledger):
    """Looking up a feature that does not exist says which ids do."""
    with pytest.raises(UnknownName, match=r"S0\.1 to S4\.24"):
        ledger["S7.7"]


def test_a_minimal_ledger_loads(tmp_path):
    """The smallest valid file gives one feature with one claim."""
    ledger = load_ledger(ledger_text(tmp_path, VALID))
    assert list(ledger.claims()) == [SeedClaim("C9.1-x", "q", "1 s")]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('claimed: "1 s"', 'claimed: "1 s", measured: "2 s", why: w', "without its source"),
        ('claimed: "1 s"', 'claimed: "1 s", measured: "2 s", source: "measured:clock"', "and its why"),
        ('claimed: "1 s"', "claimed: 1", "no text in claimed"),
        ('claimed: "1 s"', 'claimed: "1 s", verdict: maybe', "untestable"),
        ('claimed: "1 s"', 'claimed: "1 s", seen: "2 s"', "unknown keys"),
        ("C9.1-x", "C9.2-x", "must look like C9.1"),
        ("status: planned", "status: done", "planned, works"),
        ("seed: 9", "seed: 8", "under seed 8"),
        ("module: null, ", "", "lacks"),
        ("schema_version: 1", "schema_version: 2", "schema_version: 1"),
        ("features:", "things:", "no list of entries"),
        ("[", "", "not valid YAML"),
    ],
)
def test_a_bad_entry_is_refused_with_advice(tmp_path, old, new, message):
    """Each rule of the ledger has one entry that breaks it, and the message names the file."""
    with pytest.raises(TapError, match=message) as caught:
        load_ledger(ledger_text(tmp_path, VALID.replace(old, new, 1)))
    assert "features.yml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_repeated_id_is_refused(tmp_path):
    """Two entries under one id are an error, not a silent choice."""
    entry = VALID.partition("features:\n")[2]
    with pytest.raises(TapError, match=r"S9\.1 more than once"):
        load_ledger(ledger_text(tmp_path, VALID + entry))


def test_a_missing_file_is_one_line_of_advice(tmp_path):
    """Without the file the reason is stated, not a traceback."""
    with pytest.raises(TapError, match="complete checkout"):
        load_ledger(tmp_path / "absent.yml")


def test_evidence_needs_module_test_and_mention(tmp_path):
    """A working feature is believed only when file, name, test function and mention are all there."""
    working = VALID.replace("planned", "works")
    feature = load_ledger(ledger_text(tmp_path, working)).features[0]
    assert missing_evidence(feature, tmp_path) == ("it names no module", "it names no test")

    working = working.replace("module: null", "module: tapwb.part.Thing").replace("test: null", "test: tests/test_a.py")
    feature = load_ledger(ledger_text(tmp_path, working)).features[0]
    assert missing_evidence(feature, tmp_path) == (
        "module tapwb.part.Thing does not exist",
        "tests/test_a.py does not exist",
    )

    (tmp_path / "tapwb").mkdir()
    (tmp_path / "tapwb" / "part.py").write_text("class Thing: ...\n")
    (tmp_path / "tests").mkdir()
    test = tmp_path / "tests" / "test_a.py"
    test.write_text('"""Seed features: S9.1"""\n')
    assert missing_evidence(feature, tmp_path) == ("tests/test_a.py holds no test",)
    test.write_text('"""Seed features: S9.12"""\ndef test_x(): ...\n# Seed features: S9.1\n')
    assert missing_evidence(feature, tmp_path) == ("tests/test_a.py has no line `Seed features: S9.1`",)
    test.write_text('"""Promise.\n\nSeed features: S9.12, S9.1\n"""\ndef test_x(): ...\n')
    assert missing_evidence(feature, tmp_path) == ()


def test_module_paths_are_resolved_without_importing():
    """Packages, modules and top-level names resolve; anything else does not."""
    assert module_exists("tapwb", ROOT)
    assert module_exists("tapwb.evals.seed_ledger", ROOT)
    assert module_exists("tapwb.evals.seed_ledger.SeedClaim", ROOT)
    assert module_exists("tapwb_kernels", ROOT)
    assert not module_exists("tapwb.evals.seed_ledger.SeedClam", ROOT)
    assert not module_exists("tapwb.evals.absent", ROOT)
    assert not module_exists("json", ROOT)


def test_a_notebook_is_evidence_by_its_text(tmp_path):
    """In a notebook the line stands in a markdown cell."""
    notebook = tmp_path / "01_which.py"
    notebook.write_text("# %% [markdown]\n# Seed features: S1.2, S1.3\n\n# %%\n1 + 1\n")
    assert mentioned_features(notebook) == {"S1.2", "S1.3"}
