"""How a step is carried out: `step` does it plainly, the other files hold one lean technique each.

`harness/techniques.py` names them and says what each does; what is computed stays as it is, or a technique is refused
or marked as inexact.
"""
