"""The catalog tells the truth about what it lists, without loading anything heavy."""

import json
import subprocess
import sys

import pytest

from tapwb.models import list_models, load_model, resolve_model
from tapwb.models.catalog import DEFAULT_MODEL_ID, TINY_FAMILIES, catalog

LIST = """
import json, sys
from tapwb.models import list_models
rows = list_models()
print(json.dumps([[row.id for row in rows], sorted({"torch", "transformers", "gguf"} & set(sys.modules))]))
"""


def test_listing_models_loads_neither_torch_nor_transformers():
    """A list must appear at once."""
    run = subprocess.run([sys.executable, "-c", LIST], capture_output=True, text=True, check=True)
    ids, heavy = json.loads(run.stdout)
    assert heavy == []
    assert ids[0] == DEFAULT_MODEL_ID


def test_every_tiny_family_is_a_catalog_model():
    """So that every command takes them by name."""
    assert {f"tiny-random-{family}" for family in TINY_FAMILIES} == {
        name for name in catalog.names() if catalog[name].tiny_family
    }


def test_a_model_is_listed_as_cached_once_it_is_ready(own_cache):
    """Before the first load it is not."""
    name = "tiny-random-gpt2"
    before = {row.id: row.cached for row in list_models()}
    load_model(name)
    after = {row.id: row.cached for row in list_models()}
    assert (before[name], after[name]) == (False, True)
    assert {k: v for k, v in before.items() if k != name} == {k: v for k, v in after.items() if k != name}


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_listed_sizes_are_what_is_on_disk(own_cache, family):
    """Parameters exactly; bytes within 2 %, as configuration files grow with library versions."""
    name = f"tiny-random-{family}"
    loaded = load_model(name, dtype="float32")
    stored = {p.data_ptr(): p.numel() for p in loaded.model.parameters()}
    on_disk = sum(p.stat().st_size for p in loaded.info.path.iterdir())
    assert catalog[name].n_parameters == sum(stored.values())
    assert catalog[name].size_bytes == pytest.approx(on_disk, rel=0.02)


def test_a_tiny_model_resolves_to_a_folder_with_an_identity(own_cache):
    """Resolving builds it; resolving again finds it."""
    first, second = resolve_model("tiny-random-phi3"), resolve_model("tiny-random-phi3")
    assert first == second
    assert (first.info.source, first.info.licence, first.info.revision) == ("tiny", "apache-2.0", "seed 0")
    assert (first.path / "config.json").is_file()
