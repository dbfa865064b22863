"""Pieces that several algorithms share: buffers of past samples, trunks that freeze, columns, masks, pruned channels."""
