"""The built-in corpus: scenes of emoji pictures with questions in many languages."""
