"""Checks of a model on this machine, against published values and plain torch in float64."""
