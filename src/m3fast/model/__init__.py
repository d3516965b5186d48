"""The model on packed tokens: packing, the encoder, its three heads."""
