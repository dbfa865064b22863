"""Pieces that several algorithms share: buffers of past samples, frozen trunks, columns, masks, pruned channels.

`ewc_variants` belongs to one algorithm: the usual ways that EWC's own is measured against.
"""
