"""What the hub must not forget, in one SQLite file (PostgreSQL can come later behind the same Protocol).

``rows.py`` says what is kept, ``interface.py`` how it is reached, ``sqlite.py`` does it. Private keys are not in here.
"""
