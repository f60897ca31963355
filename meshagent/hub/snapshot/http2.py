"""HTTP/2 between proxies: windows and keep-alive, the same numbers at both ends.

A stream may hold 512 KiB unread (12 MB/s at 40 ms round trip); the connection's window has room for every one of its
streams twice. With HTTP/2's default windows two clients that don't read block every other connection between two hosts.
"""

from envoy.config.core.v3.protocol_pb2 import Http2ProtocolOptions, KeepaliveSettings
from google.protobuf.wrappers_pb2 import UInt32Value

from meshagent.hub.snapshot.messages import seconds

STREAMS = 100
STREAM_WINDOW = 512 << 10
CONNECTION_WINDOW = 2 * STREAMS * STREAM_WINDOW

#: Pings of the client's side: a peer that vanished without a word is found within interval + time-out, or, on a
#: connection that was idle, within the time-out of the first request on it. 1 s lives through two lost packets.
CLIENT_PING = (1.0, 1.0)
#: Pings of the server's side only free what a vanished client held.
SERVER_PING = (5.0, 5.0)


def client_options() -> Http2ProtocolOptions:
    """For clusters that lead to another proxy."""
    interval, timeout = CLIENT_PING
    keepalive = KeepaliveSettings(
        interval=seconds(interval), timeout=seconds(timeout), connection_idle_interval=seconds(interval)
    )
    return _options(keepalive)


def server_options() -> Http2ProtocolOptions:
    """For the listener that takes connections of other proxies."""
    interval, timeout = SERVER_PING
    return _options(KeepaliveSettings(interval=seconds(interval), timeout=seconds(timeout)))


def _options(keepalive: KeepaliveSettings) -> Http2ProtocolOptions:
    return Http2ProtocolOptions(
        allow_connect=True,
        max_concurrent_streams=UInt32Value(value=STREAMS),
        initial_stream_window_size=UInt32Value(value=STREAM_WINDOW),
        initial_connection_window_size=UInt32Value(value=CONNECTION_WINDOW),
        connection_keepalive=keepalive,
    )
