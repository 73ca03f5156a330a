"""Tasks of the Language Model Evaluation Harness as tunesmith benchmarks. Importing this imports neither torch nor
lm_eval.
"""

from tunesmith_lm_eval.config import Task

__all__ = ["Task"]
