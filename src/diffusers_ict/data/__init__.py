"""Training images and draws over them: sources of pictures, decoding into bytes, and batches as functions of a seed."""
