"""Whether this model on this machine gives what it must: published values, plain torch in fp64."""
