"""One thread for whatever a pass process computes, on any machine.

Passes run side by side, as many as there are cores. Threads of one that spin, waiting for work, take the cores from the others; and sums
of floats that depend on the number of threads would make other variants on another machine.
"""

from __future__ import annotations

from functools import wraps
from typing import Any

ENVIRONMENT = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")  # libraries read them when loaded


def limit_sessions(onnxruntime: Any) -> None:
    """Gives one thread to every session that is opened from now on, whoever opens it.

    ONNX Runtime's quantiser opens some of its own, with options that no parameter reaches, and its default is a thread per core.
    """
    as_asked = onnxruntime.InferenceSession.__init__

    @wraps(as_asked)
    def on_one_thread(session: Any, path_or_bytes: Any, sess_options: Any = None, *args: Any, **kwargs: Any) -> None:
        options = onnxruntime.SessionOptions() if sess_options is None else sess_options
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        as_asked(session, path_or_bytes, options, *args, **kwargs)

    onnxruntime.InferenceSession.__init__ = on_one_thread
