from tunesmith.testing import conformance
from tunesmith_plugins.engines import Scripted, Transformers


@conformance(
    Transformers(),
    Transformers(batch_size=2),
    Scripted(answers=("the cat", "dog", "fish"), repeat=True),
)
def test_conforms(check):
    check()
