"""What meshagent costs, measured: ``python -m tests.bench`` (``make bench``) writes the table of docs/performance.md.

Every number is a ``Sample`` (samples.py); what it has to reach is in goals.py; table.py makes the page of the two, and
is pure. The rest measures: datapath.py drives real loads through a real mesh of lab hosts (stage.py) in turns with the
direct path and with sidecar.py, the shape that one mutual-TLS connection per connection has; lifecycle.py, names.py,
capture.py and fleet.py measure the programs. Loads, proxies and servers share this machine's cores: ratios mean
something here, absolute numbers little.
"""
