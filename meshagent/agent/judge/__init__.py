"""What ``plan`` says about a host: facts and an intent in, sentences and risks out. Pure; ``agent/plan.py`` reads.

One file for each question: ``connections`` (what happens to those that are open), ``spared`` (what is never captured),
``sysctls`` (kernel settings that matter), ``firewalls`` (who would keep mesh peers out; it reads rules by ``nft_rules``
and ``saved_rules`` as chains of ``packets``), ``trust`` (access rules by address), ``risks`` (what is refused unless a
person accepts it by name).
"""
