"""Who may be who: the CA, tokens, enrolment and renewal.

``policy.py`` decides and ``issue.py`` builds, signs and validates certificates (both pure); ``roots.py`` keeps the CA's
files, ``tokens.py`` and ``directory.py`` the rows, ``service.py`` answers the wire.
"""
