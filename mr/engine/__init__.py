"""The engine: pure transitions, and the flows that read, decide and commit them.

A flow is a generator that yields operations and is sent their answers; it does no I/O itself. A shell carries the
operations out against a real store, queue and runner; the simulation in the tests carries out the same ones over
every kind of fault. The protocol is the one of the design, section "The engine".
"""
