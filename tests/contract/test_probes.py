"""What every energy probe promises, whoever wrote it.

Seed features: S1.23
"""

import pytest

from tapwb.core.reading import Unavailable
from tapwb.monitors import Probe, Work, probes


def _recording(folder):
    file = folder / "card.csv"
    file.write_text("time_s,energy_j\n0,100\n0.1,120\n0.2,130\n0.3,170\n")
    return {"path": file}


def _powercap(folder):
    zone = folder / "intel-rapl:0"
    zone.mkdir()
    for name, text in {"name": "package-0", "energy_uj": "5000", "max_energy_range_uj": "262143328850"}.items():
        (zone / name).write_text(f"{text}\n")
    return {"root": folder}


#: Probes that need something to read on a machine without counters; every other is opened as it comes.
NEEDS = {"replay": _recording, "rapl": _powercap}


@pytest.fixture(params=probes.names())
def opened(request, tmp_path):
    """Every registered probe, opened on whatever this machine has."""
    needs = NEEDS.get(request.param)
    probe = probes[request.param](**(needs(tmp_path) if needs else {}))
    yield request.param, probe
    if not isinstance(probe, Unavailable):
        probe.close()


@pytest.mark.parametrize("name", probes.names())
def test_a_probe_opens_with_defaults_or_says_why_not_in_one_line(name):
    """A machine without the instrument gets a reason, not an exception and not a zero."""
    probe = probes[name]()
    if isinstance(probe, Unavailable):
        assert probe.reason
        assert "\n" not in probe.reason
    else:
        assert isinstance(probe, Probe)
        probe.close()


@pytest.mark.parametrize("name", probes.names())
def test_a_probe_says_what_it_is_and_which_device_it_reads(name):
    """Lists show a summary; the monitor picks by device."""
    entry = probes.entry(name)
    assert entry.summary
    assert entry.metadata["device"] in {"cpu", "cuda", "any", "none"}


def test_a_probe_names_itself_its_source_and_its_update_interval(opened):
    """The source tells measured from estimated, and the interval tells which windows can be read."""
    name, probe = opened
    if isinstance(probe, Unavailable):
        pytest.skip(probe.reason)
    assert probe.name == name
    assert probe.source.split(":")[0] in {"measured", "estimated"}
    assert probe.update_interval_s > 0
    assert probe.max_gap_s is None or probe.max_gap_s > 0
    assert isinstance(probe.idle_power_w, float | Unavailable)


def test_energy_never_falls_and_closing_twice_is_harmless(opened):
    """A cumulative counter only rises, which is what a subtraction relies on."""
    _, probe = opened
    if isinstance(probe, Unavailable):
        pytest.skip(probe.reason)
    seen = [probe.energy_j(100 + 0.05 * step, Work(10 * step, 7 * step)) for step in range(5)]
    assert not [value for value in seen if isinstance(value, Unavailable)]
    assert seen == sorted(seen)
    probe.close()
    probe.close()
