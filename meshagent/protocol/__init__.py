"""The wire, pure: delta ADS from both sides, node ids, enrolment token and transcript, announcements.

The same code runs in hub and agent and is what istiod speaks to. Nothing here does I/O: messages go in, messages and
changes come out; ``transport`` moves the bytes. Read types.py first, then publisher.py (the server's half) and
subscriber.py (the client's half). ``pb/`` holds generated messages only (no gRPC stubs: they would pull grpc in).
"""
