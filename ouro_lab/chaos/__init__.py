"""Faults made on purpose, each against what docs/faults.md promises: `make chaos`, or ARGS=--quick for minutes."""
