"""Pieces that several algorithms share: buffers of past samples, frozen trunks, columns, masks, pruned channels."""
