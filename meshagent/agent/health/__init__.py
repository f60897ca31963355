"""What can be wrong on a host, as data, and which of it is wrong now.

In: reports of all parts through ``model.condition.ConditionSink``. Out: the sorted conditions that ``status``, log,
metrics and hub show under the same codes. ``conditions.py`` is the table, ``tracker.py`` keeps the state. Read
conditions.py first.
"""
