"""What the platform team installed, parsed from the chart's ConfigMap: image, pod shapes, places, secrets by name.

`helm/templates/runtime.yaml` writes it, `Runtime` reads it. A value the chart does not set has its home here, and
a test holds the two equal.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator
from pydantic.alias_generators import to_camel

from inpaint import __version__
from inpaint.cluster.places import is_under
from inpaint.cluster.quantity import quantity
from inpaint.cluster.secrets import refuse_secrets
from inpaint.config.base import Strict, load_yaml, validate

GPU_TAINT = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
SPOT_TAINTS = (
    {"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"},
    {"key": "kubernetes.azure.com/scalesetpriority", "operator": "Equal", "value": "spot", "effect": "NoSchedule"},
)
RUNTIME_KEY = "runtime.yaml"  # the ConfigMap's key
Count = Annotated[int, Field(ge=0)]
Cores = Annotated[float, Field(gt=0)]
Seconds = Annotated[int, Field(gt=0)]
Quantity = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$")]
GroupName = Annotated[str, Field(pattern=r"^[a-z]([-a-z0-9]{0,18}[a-z0-9])?$")]
Objects = list[dict[str, Any]]


class Group(Strict):
    """Settings that are written in camelCase, as everything beside them in a chart."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)


class Image(Group):
    """What every pod runs: one image, so that head, workers and submitter cannot differ in version."""

    reference: str = f"inpaint:{__version__}"  # name:tag or name@sha256:…
    pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    pull_secrets: list[str] = Field(default_factory=list)


class ServiceAccounts(Group):
    """Names; who they are in the cloud is said by annotations on the accounts themselves."""

    head: str = "inpaint-head"
    worker: str = "inpaint-worker"
    submitter: str = "inpaint-submitter"


class Store(Group):
    """Where shards, runs and sweeps lie: an `s3://` prefix, or a folder on a shared volume claim."""

    root: str = ""
    existing_claim: str = ""  # ReadWriteMany, mounted in head and workers
    mount_path: str = "/store"


class S3(Group):
    """How the store is reached. Keys are names inside `existing_secret`; none with a cloud identity."""

    endpoint: str = ""  # for a gateway; the cloud's own when empty
    region: str = ""
    existing_secret: str = ""
    access_key_id_key: str = "AWS_ACCESS_KEY_ID"
    secret_access_key_key: str = "AWS_SECRET_ACCESS_KEY"
    session_token_key: str = ""  # only for temporary credentials
    ca_bundle_config_map: str = ""  # holds ca.crt for a gateway with a private certificate


class Wandb(Group):
    """Weights & Biases; offline when no secret is named."""

    existing_secret: str = ""
    api_key_key: str = "WANDB_API_KEY"
    base_url: str = ""


class Cache(Group):
    """A node-local volume at /cache for shards, weights and compiled code; gone with the pod."""

    size: Quantity = "60Gi"
    storage_class: str = ""  # an ephemeral claim of this class; the node's own disk when empty


class PodShape(Group):
    """What all pods can be given: size, place, and what a site adds.

    Attributes:
        cpus: cores, requested and limited alike.
        memory: bytes, requested and limited alike; shared memory counts inside it.
        shm: size of /dev/shm, where Ray's object store and batches lie.
    """

    cpus: Cores = 1
    memory: Quantity = "4Gi"
    shm: Quantity = "1Gi"
    node_selector: dict[str, str] = Field(default_factory=dict)
    tolerations: Objects = Field(default_factory=list)
    affinity: dict[str, Any] = Field(default_factory=dict)
    topology_spread_constraints: Objects = Field(default_factory=list)
    priority_class_name: str = ""
    scheduler_name: str = ""
    runtime_class_name: str = ""
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)
    extra_env: Objects = Field(default_factory=list)
    extra_env_from: Objects = Field(default_factory=list)
    extra_volumes: Objects = Field(default_factory=list)
    extra_volume_mounts: Objects = Field(default_factory=list)
    init_containers: Objects = Field(default_factory=list)
    sidecars: Objects = Field(default_factory=list)

    def mounted(self, *, lasting: bool = False) -> list[str]:
        """Paths of the site's own volumes; if asked, only of those that outlive a pod."""
        own = {volume.get("name") for volume in self.extra_volumes if {"emptyDir", "ephemeral"} & volume.keys()}
        mounts = [mount for mount in self.extra_volume_mounts if not (lasting and mount.get("name") in own)]
        return [str(mount["mountPath"]) for mount in mounts]

    @field_validator("labels")
    @classmethod
    def _labels_are_not_the_operators(cls, labels: dict[str, str]) -> dict[str, str]:
        taken = [label for label in labels if label.startswith("ray.io/")]
        if taken:
            raise ValueError(f"{taken[0]} belongs to the KubeRay operator; choose a label without ray.io/")
        return labels

    @model_validator(mode="after")
    def _shared_memory_fits(self) -> PodShape:
        if quantity(self.shm) >= quantity(self.memory):
            raise ValueError(f"shm {self.shm} is counted inside memory {self.memory}; make it smaller than that")
        return self


class Head(PodShape):
    """The Ray head: schedules, runs the driver, never trains."""

    cpus: Cores = 2
    memory: Quantity = "8Gi"
    shm: Quantity = "2Gi"
    dashboard_events: Count = 1000  # kept by the dashboard, which otherwise grows without end


class Submitter(PodShape):
    """The small pod that hands the entry point to the head and follows its log."""

    cpus: Cores = 0.5
    memory: Quantity = "1Gi"
    shm: Quantity = "64Mi"


class WorkerGroup(PodShape):
    """One kind of worker pod.

    Attributes:
        gpus: per pod; 0 makes a CPU group.
        gpu_resource: what the device plugin calls them (`nvidia.com/mig-1g.10gb`, ...).
        spot: may be taken away; drained before it goes, and chosen by `submit --spot`.
        max_replicas: most pods of this group that one run may ask for.
    """

    cpus: Cores = 8
    memory: Quantity = "32Gi"
    shm: Quantity = "8Gi"
    gpus: Count = 0
    gpu_resource: str = "nvidia.com/gpu"
    spot: bool = False
    max_replicas: Annotated[int, Field(gt=0)] = 16
    cache: Cache = Cache()


class Timeouts(Group):
    """When to give up."""

    active_deadline_seconds: Seconds = 1209600  # a whole run, 14 days
    pre_running_deadline_seconds: Seconds = 3600  # from creation (or admission) until the entry point runs
    queue_seconds: Seconds = 86400  # in a Kueue queue that does not admit
    worker_start_seconds: Seconds = 900  # until all workers of the group are there
    collective_seconds: Seconds = 1800  # a stuck all-reduce


class Retries(Group):
    """How often a failed part starts again; the entry point resumes from the newest checkpoint."""

    new_clusters: Count = 2
    submitter: Count = 6


class Retention(Group):
    """What stays after the end. Worker pods, and with them GPUs, are freed at once."""

    succeeded_seconds: Count = 300  # head of a run that succeeded
    failed_seconds: Count = 3600  # head of a run that failed, for its logs
    record_seconds: Count = 604800  # the RayJob itself, 7 days


class Shutdown(Group):
    """How long a pod that must go may take.

    Attributes:
        drain_seconds: Ray keeps the node up so long after the signal; the run sees it within seconds.
        checkpoint_seconds: to write a checkpoint and upload it.
    """

    drain_seconds: Seconds = 60
    checkpoint_seconds: Seconds = 60

    @property
    def grace_seconds(self) -> int:
        """The pod's termination grace period: drain, checkpoint, and 15 s for Ray to end its processes."""
        return self.drain_seconds + self.checkpoint_seconds + 15


class Queue(Group):
    """Who admits a run: nobody, Kueue (suspended until there is quota) or Volcano (gang scheduling)."""

    kind: Literal["none", "kueue", "volcano"] = "none"
    name: str = ""

    @model_validator(mode="after")
    def _name_goes_with_kind(self) -> Queue:
        if (self.kind == "none") == bool(self.name):
            raise ValueError(f"kind {self.kind} with name {self.name!r}; give a name exactly when there is a queue")
        return self


class Autoscaler(Group):
    """Ray's autoscaler in the head pod: workers start when asked for and leave when idle."""

    enabled: bool = False
    idle_timeout_seconds: Seconds = 60


class Runtime(Group):
    """The platform's half of a run. The other half is the run file."""

    name: str = "inpaint"
    labels: dict[str, str] = Field(
        default_factory=lambda: {
            "app.kubernetes.io/name": "inpaint",
            "app.kubernetes.io/instance": "inpaint",
            "app.kubernetes.io/version": __version__,
        }
    )
    image: Image = Image()
    ray_version: str = "2.60.0"
    submission_mode: Literal["K8sJobMode", "HTTPMode"] = "K8sJobMode"
    dashboard_token: bool = True
    service_accounts: ServiceAccounts = ServiceAccounts()
    run_as_user: Annotated[int, Field(gt=0)] = 1000
    fs_group: Annotated[int, Field(gt=0)] = 1000
    store: Store = Store()
    s3: S3 = S3()
    wandb: Wandb = Wandb()
    env: dict[str, str] = Field(default_factory=dict)
    head: Head = Head()
    submitter: Submitter = Submitter()
    worker_groups: dict[GroupName, WorkerGroup] = Field(
        default_factory=lambda: {
            "cpu": WorkerGroup(cpus=4, memory="16Gi", shm="4Gi", max_replicas=8),
            "gpu": WorkerGroup(gpus=1, tolerations=[dict(GPU_TAINT)]),
            "gpu-spot": WorkerGroup(gpus=1, spot=True, tolerations=list(map(dict, (GPU_TAINT, *SPOT_TAINTS)))),
        }
    )
    timeouts: Timeouts = Timeouts()
    retries: Retries = Retries()
    retention: Retention = Retention()
    shutdown: Shutdown = Shutdown()
    queue: Queue = Queue()
    autoscaler: Autoscaler = Autoscaler()

    @property
    def shared_folders(self) -> list[str]:
        """Paths that pods see alike: the claim's, and those at which the site mounts a volume in head and workers."""
        claim = [self.store.mount_path] if self.store.existing_claim else []
        workers = {path for group in self.worker_groups.values() for path in group.mounted(lasting=True)}
        return claim + [path for path in self.head.mounted(lasting=True) if path in workers]

    @property
    def worker_folders(self) -> list[str]:
        """Paths at which the site mounts a volume in some workers."""
        return list(dict.fromkeys(path for group in self.worker_groups.values() for path in group.mounted()))

    @model_validator(mode="after")
    def _parts_fit(self) -> Runtime:
        if self.queue.kind == "kueue" and self.autoscaler.enabled:
            raise ValueError("queue.kind kueue admits a fixed size; set autoscaler.enabled: false")
        store = self.store
        if store.existing_claim and store.root and not is_under(store.root, [store.mount_path]):
            raise ValueError(
                f"store.root {store.root} is not on the claim {store.existing_claim}; put it under {store.mount_path}"
            )
        if not self.worker_groups:
            raise ValueError("worker_groups is empty; a run needs at least one group")
        return self


def parse_runtime(text: str, *, place: str) -> Runtime:
    """The runtime that a chart's ConfigMap (or a file with the same text) describes.

    Raises:
        ConfigError: not YAML, an unknown or impossible setting, or a secret written out instead of named.
    """
    values = load_yaml(text, place=place)
    refuse_secrets(values, place=place)
    return validate(Runtime, values, place=place)
