"""Flags with which XLA compiles soonest, most of the suite's time; read when JAX first computes."""

FLAGS = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"


def devices(count: int) -> str:
    """The flags of a process of its own, with simulated devices."""
    return f"--xla_force_host_platform_device_count={count} {FLAGS}"
