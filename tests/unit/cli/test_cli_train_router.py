"""`tapwb train-router` from text to file, and the file at work."""

from pathlib import Path

TINY = "tiny-random-llama"


def test_a_router_is_trained_scored_and_used(tapwb, tmp_path):
    """Its scores are of windows it did not see; `run -p router:MEAN:FILE` takes the file and says what gates cost."""
    text, file = tmp_path / "text.txt", tmp_path / "gates.safetensors"
    text.write_text("".join(chr(33 + (i * i * 7 + i // 5) % 90) for i in range(500)), encoding="utf-8")
    words = ("--model", TINY, "--text-file", str(text), "--context", "40", "--windows", "10", "--out", str(file))
    found = tapwb("train-router", *words, "--json").json
    assert (found["windows_fitted"], found["windows_scored"]) == (8, 2)
    assert set(found["expected_damage_cut"]) == {"4.5", "5.5"}
    assert found["provenance"]["model_id"] == TINY
    assert Path(found["file"]) == file
    assert file.is_file()
    prompt = text.read_text(encoding="utf-8")[:50]
    ran = tapwb("run", "--model", TINY, "--prompt", prompt, "-p", f"router:5:{file}", "--max-new-tokens", "4", "--json")
    assert abs(ran.json["metrics"]["precision"]["mean_bits"] - 5) < 0.1
    assert any(f"{found['gate_bytes']:,} bytes" in note for note in ran.json["metrics"]["notes"])
