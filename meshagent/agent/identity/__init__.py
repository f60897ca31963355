"""The host's keys and certificates: kept as one set, renewed in time, handed to Envoy over SDS.

In: an enrolment (``keystore``) and somebody who signs (``rotator.CertificateSigner``). Out: ``Latest[Identity]``.
Read ``schedule.py`` for when, ``svid.py`` for what is believed, ``rotator.py`` for the loop that joins them.
"""
