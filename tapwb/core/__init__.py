"""The vocabulary every other package speaks: errors, readings, units, registries, jobs. Imports nothing of ours."""
