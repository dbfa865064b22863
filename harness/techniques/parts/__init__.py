"""The code of techniques: what is computed in another order, in smaller pieces, or stored otherwise."""
