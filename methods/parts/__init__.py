"""Pieces that several algorithms share: the reservoir of past samples, and the trunk that freezes."""
