# SPDX-License-Identifier: Apache-2.0
"""The parts of bench/soak.py.

network.py   two `keyferry serve` processes, killed and started again; their memory and their logs
loss.py      a network namespace in which the kernel drops packets
phones.py    UEs that register again and again, and remember what they were told
keys.py      whether the application server holds what it must, and not what it must not
verdict.py   what the figures mean
"""
