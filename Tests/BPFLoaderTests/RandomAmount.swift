import Glibc

/// How much of what is random is tried: all, or one in `SLUICE_RANDOM_DIVISOR` where a machine is emulated.
enum RandomAmount {
  static let divisor = max(1, getenv("SLUICE_RANDOM_DIVISOR").flatMap { Int(String(cString: $0)) } ?? 1)

  static func of(_ whole: Int) -> Int { max(1, whole / divisor) }
}
