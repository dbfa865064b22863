"""How a step is carried out: `step` does it, plainly or by lean techniques, of which the other files hold the larger.

`harness/specs/techniques.py` names them and says what each does. What is computed stays as it is, or a technique is
refused (`refusals`) or marked as inexact. `monitor` and `watch` are how others look on.
"""
