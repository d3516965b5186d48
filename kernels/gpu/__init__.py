"""The GPU kernels: `@triton.jit` functions, their configs, and one `launch_<op>` for each.

Imported only inside the branch that launches: the package works without Triton.
"""
