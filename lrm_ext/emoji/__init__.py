"""The built-in corpus: scenes of emoji images with questions in many languages."""
