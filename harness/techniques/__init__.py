"""What makes a step lean. `harness/execution/` takes the steps.

`parts/` holds the code of techniques, with torch.
"""
