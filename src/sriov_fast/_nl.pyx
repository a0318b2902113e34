# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, auto_pickle=False
"""rtnetlink, compiled: encode a batch into one buffer, send it once, check every answer, decode what is used.

A batch is plain bytes in a C buffer until it is sent; Python objects appear only as arguments and as
results. The parts below are compiled as one module. The structs of the messages are in ``_nl_wire.pxd``, the
system calls in ``_nl_calls.pxd``. ``kernel/_nl_py.py`` is the plain implementation; ``_nl.pyi`` declares the
interface of both.

Namespaces belong to threads. A function that needs another one (for a socket, or a file below /proc/sys/net)
enters it, does that one system call and returns, all in C and without the interpreter lock, so that no Python
code ever runs in that namespace. A thread that cannot return ends the process: it would configure the wrong
namespace from then on.
"""

from sriov_fast._nl_calls cimport *
from sriov_fast._nl_wire cimport *

include "_nl_arguments.pxi"
include "_nl_buffer.pxi"
include "_nl_attributes.pxi"
include "_nl_vf.pxi"
include "_nl_link.pxi"
include "_nl_route.pxi"
include "_nl_batch.pxi"
include "_nl_replies.pxi"
include "_nl_netns.pxi"
include "_nl_ethtool.pxi"
include "_nl_bpf.pxi"
include "_nl_socket.pxi"
