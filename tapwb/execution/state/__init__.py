"""How recurrent states are kept: at which precision, and by which layers of which models."""
