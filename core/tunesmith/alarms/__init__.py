"""Alarms for reward hacking: what an online training is watched for while its reward goes up.

Each alarm is one statistic of a series of step means, with a threshold that keeps a stated rate of false alarms; see
:mod:`tunesmith.alarms.statistic`. ``Align(alarms=Alarms(...))`` watches, reports and, if asked to, stops.
"""

from tunesmith.alarms.config import NAMES, Alarms

__all__ = ["NAMES", "Alarms"]
