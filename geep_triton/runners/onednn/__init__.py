"""Layers for a CPU whose products are oneDNN's: in float32, bfloat16 and int8."""
