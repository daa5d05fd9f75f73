"""Work as tasks of Ray, on this machine or on a cluster."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from cee_gym.errors import CeeGymError, check_number


@dataclass(frozen=True)
class Cluster:
    """The machines that tasks run on, and what Ray keeps there for each of them.

    Attributes:
        address: of a cluster that runs, such as `"auto"`; None to start one on this machine.
        cpus: the number of CPUs for a task.
        gpus: the number of GPUs for a task.
    """

    address: str | None = None
    cpus: float = 1.0
    gpus: float = 0.0

    def __post_init__(self) -> None:
        check_number("cpus", self.cpus, 0)
        check_number("gpus", self.gpus, 0)
        if not self.cpus + self.gpus:
            raise CeeGymError("cpus and gpus are both 0: a task needs some of one")

    @contextmanager
    def tasks(self, function: Callable[..., Any], name: str) -> Iterator["RayTasks"]:
        """Calls of a function, each a task; a Ray that was started for them ends with the block.

        Ray that runs in this process already is used as it is, whatever `address` says.

        Args:
            function: a function of a module; its arguments and what it returns are pickled.
            name: what a task is called in messages, such as `cell`.

        Raises:
            CeeGymError: if Ray is not installed or cannot be reached, or no machine has what a task
                needs.
        """
        try:
            import ray
        except ImportError:
            raise CeeGymError('ray is not installed: pip install "cee-gym[cluster]"') from None
        ours = not ray.is_initialized()
        try:
            if ours:
                ray.init(address=self.address, include_dashboard=False, log_to_driver=False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise CeeGymError(f"no Ray at {self.address}: {error}") from error
        try:
            task = ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_retries=-1)(function)
            tasks = RayTasks(self, task, name)
            tasks.check()
            yield tasks
        finally:
            if ours:
                ray.shutdown()


@dataclass
class RayTasks:
    """Calls of one function that run as tasks; Ray gives that of a worker that dies to another.

    Attributes:
        cluster: what a task needs.
        task: the remote function.
        name: of a task, in messages.
        running: what was started and not waited for, and the key of each.
    """

    cluster: Cluster
    task: Any
    name: str
    running: dict[Any, Any] = field(default_factory=dict)

    @property
    def slots(self) -> int:
        """How many tasks run at once on the machines there are now."""
        needs = {kind: wanted for kind, wanted in self._needs.items() if wanted}
        return sum(
            min(int(of.get(kind, 0) // wanted) for kind, wanted in needs.items())
            for of in self._machines()
        )

    def check(self) -> None:
        """Refuses tasks that no machine has room for, which Ray would let wait for ever.

        Raises:
            CeeGymError: naming what is missing.
        """
        machines = self._machines()
        for kind, wanted in self._needs.items():
            most = max((of.get(kind, 0) for of in machines), default=0)
            if wanted > most:
                raise CeeGymError(
                    f"a {self.name} is to have {wanted:g} {kind}s, and no machine has more than "
                    f"{most:g}"
                )
        if not self.slots:
            both = " and ".join(f"{wanted:g} {kind}s" for kind, wanted in self._needs.items())
            raise CeeGymError(f"a {self.name} is to have {both}, and no machine has both")

    def start(self, key: Any, *given: Any) -> None:
        """Calls the function with what is given; `wait` gives the key with the result."""
        self.running[self.task.remote(*given)] = key

    def wait(self) -> tuple[Any, Any]:
        """The key and the result of a task that has ended, one of those started.

        Raises:
            CeeGymError: if the function raised something; the message says which task.
        """
        import ray

        (finished, *_), _ = ray.wait(list(self.running))
        key = self.running.pop(finished)
        try:
            return key, ray.get(finished)
        except ray.exceptions.RayTaskError as error:
            raise CeeGymError(f"{self.name} {key}: {error.cause or error}") from error

    @property
    def _needs(self) -> dict[str, float]:
        return {"CPU": self.cluster.cpus, "GPU": self.cluster.gpus}

    def _machines(self) -> list[dict[str, float]]:
        import ray

        return [node["Resources"] for node in ray.nodes() if node["Alive"]]
