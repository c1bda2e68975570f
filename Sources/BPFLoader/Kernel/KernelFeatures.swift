import CLibBPF

/// What this kernel's BPF can do, found by trying.
public struct KernelFeatures: Sendable, Equatable, CustomStringConvertible {
  /// A socket hook can choose the error that its caller gets (6.1).
  public var socketErrors: Bool

  /// Packet programs can read the clock of the last tick (5.11).
  public var coarseClock: Bool

  public static func probe() -> KernelFeatures {
    KernelFeatures(
      socketErrors: libbpf_probe_bpf_helper(BPF_PROG_TYPE_CGROUP_SOCK_ADDR, BPF_FUNC_set_retval, nil) == 1,
      coarseClock: libbpf_probe_bpf_helper(BPF_PROG_TYPE_SCHED_CLS, BPF_FUNC_ktime_get_coarse_ns, nil) == 1)
  }

  public var description: String {
    "socket errors: \(socketErrors ? "yes" : "no"), coarse clock: \(coarseClock ? "yes" : "no")"
  }
}
