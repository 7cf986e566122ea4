"""Ray as this project uses it: started here or found, with the settings that long runs need."""

from __future__ import annotations

import logging
import os
import tempfile

import ray

from inpaint.errors import ClusterError

log = logging.getLogger(__name__)

# Read by Ray Train on the driver, and handed on to its controller and workers. The pods of the chart come with
# WORKER_GROUP_START_TIMEOUT and COLLECTIVE_TIMEOUT as its values say; what is in the environment stays.
TRAIN_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # between looks at the workers; also how fast a death is noticed
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "300",
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",  # a spot node's notice may be half a minute
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "900",  # a cluster may have to add nodes first
    "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": "1800",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
}
# For a Ray of our own on this machine: nothing of it can be reached from outside, so it needs no token. A worker that
# asked for no GPU sees none; it would else start CUDA on one beside whoever has it.
LOCAL_ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
}
# Its control store is never started again, so nobody need wait long for it; its processes end that much sooner.
LOCAL_SETTINGS = {"gcs_rpc_server_reconnect_timeout_s": 5}
OBJECT_STORE_BYTES = 100 << 20  # batches do not travel through Ray


def start_ray(address: str | None) -> bool:
    """Connect to a Ray cluster, or start one on this machine; nothing to do when that was done before.

    Args:
        address: of a cluster; None means `RAY_ADDRESS` from the environment, else a Ray of our own.

    Returns:
        Whether a Ray of our own was started now; it ends with this process.

    Raises:
        ClusterError: no cluster at the address.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    for name, value in (TRAIN_ENVIRONMENT | ({} if address else LOCAL_ENVIRONMENT)).items():
        os.environ.setdefault(name, value)
    if ray.is_initialized():
        return False
    try:
        if address:
            ray.init(address=address, logging_level=logging.WARNING)
        else:
            ray.init(
                address="local",
                log_to_driver=False,  # workers' warnings come through the channel, their logs through the store
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                _system_config=LOCAL_SETTINGS,
                logging_level=logging.WARNING,
                _temp_dir=os.environ.get("RAY_TMPDIR") or _short_folder(),
            )
        return not address
    except ConnectionError as error:
        raise ClusterError(f"{address}: no Ray cluster answers ({error}); start one or leave it out") from error


def _short_folder() -> str | None:
    """A folder whose path is short enough for Ray's sockets (107 bytes with what Ray adds), or Ray's own choice."""
    folder = os.path.join(tempfile.gettempdir(), "ray")
    return folder if len(folder) < 40 else "/tmp/ray"
