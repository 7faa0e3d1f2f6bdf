"""Scoring of models and runs: arms, scorecard, gate, reflection, error injection, curves."""
