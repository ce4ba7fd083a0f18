"""Small base models that stand in for CLIP and Vicuna in the `mini` preset."""
