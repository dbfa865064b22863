"""What makes a step lean: each technique is a field with its `Technique`, in a module of its kind. No torch.

`registry` puts them into one typed object. `parts/` holds their code, with torch. `harness/execution/` takes the steps.
"""
