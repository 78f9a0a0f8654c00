"""One command that measures an accelerator: see docs/accelerators/."""
