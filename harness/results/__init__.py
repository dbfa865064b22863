"""What came out: the record of a run, what must agree in it, and where and by which code it was measured. No torch."""
