"""Supervised training by the trainers of transformers, for every component that trains. Imported at run time only.

Rows come in an order fixed beforehand, checkpoints are sealed and hold no pickle, and an interrupted training ends bit for
bit as if it had not been interrupted. A component makes :mod:`~tunesmith.training.arguments`, says its rows and its loss, and
calls :func:`tunesmith.training.trainer.train`.
"""
