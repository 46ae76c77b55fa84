"""Workloads and measurements: what is run on a device, and on what it is compared with.

Nothing in here is needed to use a device. It knows no command line and prints nothing.
"""
