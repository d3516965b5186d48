"""One model on one device: packed batches in, the outputs asked for out."""
